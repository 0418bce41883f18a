"""Names of models: folders, path objects, and snapshots of a hub cache that contain part of a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastattn.api.auto import AutoModel
from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.checkpoint.companions import COPIED
from fastattn.checkpoint.file_names import VOCABULARY_FILES
from fastattn.checkpoint.hub import ALLOW_PATTERNS, TOKENIZER_PATTERNS, resolve
from fastattn.errors import DTypeError, HubError, ModelNotFoundError
from fastattn.tasks.sentence_transformer import SentenceTransformer


@dataclass
class Fspath(os.PathLike[Any]):
    """A path object of another library."""

    path: Any

    def __fspath__(self) -> Any:
        return self.path


@pytest.mark.parametrize("given", [7, b"tiny/gpt2", None, ["tiny/gpt2"], Fspath(b"tiny")])
def test_a_name_of_the_wrong_type(given: Any) -> None:
    with pytest.raises(DTypeError, match=r"^path_or_id: expected a folder or a hub id, got \w+$"):
        resolve(given)
    with pytest.raises(DTypeError, match=r"^tokenizer: expected a folder or a hub id"):
        resolve(given, name="tokenizer")


# The ignored types are the subject: callers without a type checker pass them.
@pytest.mark.parametrize(
    ("load", "name"),
    [
        (lambda: AutoModel.from_pretrained(7), "path_or_id"),  # type: ignore[arg-type]
        (lambda: AutoModel.from_pretrained(), "path_or_id"),
        (lambda: AutoModel.from_pretrained(pretrained_model_name_or_path=7), "pretrained_model_name_or_path"),
        (lambda: AutoTokenizer.from_pretrained(7), "path"),  # type: ignore[arg-type]
        (
            lambda: AutoTokenizer.from_pretrained(pretrained_model_name_or_path=7),  # type: ignore[arg-type]
            "pretrained_model_name_or_path",
        ),
        (lambda: SentenceTransformer(7), "model_name_or_path"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_message_has_the_callers_name_of_the_argument(load: Callable[[], object], name: str) -> None:
    with pytest.raises(DTypeError, match=rf"^{name}: expected a folder or a hub id, got (int|NoneType)$"):
        load()


def test_a_path_object_is_a_folder(tmp_path: Path) -> None:
    assert resolve(Fspath(str(tmp_path))) == tmp_path
    with pytest.raises(ModelNotFoundError, match="not a hub id"):
        resolve(Fspath("tiny/gpt2"))


PARTIAL: dict[str, tuple[tuple[str, ...], bool]] = {
    "config": (("config.json", "vocab.json"), False),
    "weights": (("model.safetensors",), False),
    "both": (("config.json", "model.safetensors"), True),
    "index": (("config.json", "model.safetensors.index.json"), False),
    "a shard": (("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"), False),
    "shards": (
        ("config.json", "model.safetensors.index.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))),
        True,
    ),
    "another format": (("config.json", "pytorch_model.bin"), True),  # rejected when it is loaded, with what to do
    "modules": (("modules.json", "config.json"), False),
    "module": (("modules.json", "0_StaticEmbedding/model.safetensors"), True),
    "empty module": (("modules.json", "1_Pooling/config.json"), False),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_part_of_a_model_in_the_cache(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program or an interrupted download can leave such a part."""
    import huggingface_hub

    folder = tmp_path / "snapshot"
    names, complete = PARTIAL[case]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    def cached(*_: Any, local_files_only: bool, **__: Any) -> str:
        if not local_files_only:
            raise ConnectionResetError("no hub")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    for options in ({}, {"local_files_only": True}):
        if complete:
            assert resolve("tiny/gpt2", **options) == folder  # type: ignore[arg-type]
            continue
        with pytest.raises(HubError, match="no complete copy in the local cache"):
            resolve("tiny/gpt2", **options)  # type: ignore[arg-type]
    assert resolve("tiny/gpt2", patterns=["*.json"]) == folder
    if "vocab.json" not in names:
        with pytest.raises(HubError, match="no complete copy"):
            resolve("tiny/gpt2", patterns=TOKENIZER_PATTERNS)


def test_what_is_fetched_is_what_a_tokenizer_knows() -> None:
    """A file that loading rejects with advice must be downloaded to get there."""
    assert set(VOCABULARY_FILES) <= set(TOKENIZER_PATTERNS) <= set(ALLOW_PATTERNS)
    assert {"tekken.json", "tiktoken.model"} <= set(VOCABULARY_FILES)
    assert set(TOKENIZER_PATTERNS) - {"config.json"} <= set(COPIED)
