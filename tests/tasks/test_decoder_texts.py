"""From text to text with a Llama, a Gemma and their SentencePiece tokenizers: the ids and texts of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from tests.models.decoder_cases import GEMMA2, SIZES
from tests.tasks.tokenizer_folders import write_sentencepiece

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("tests.reference.hf")
pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.torch
TEXTS = ["the cat", "  two  spaces", "Ünïcode 😁", "a", "line\nbreak"]
N_NEW = 6
PIECES = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "pad_id": 0, "eos_id": 1, "bos_id": 2,
          "unk_id": 3}  # fmt: skip
# The tokenizer's class, the options of its training, the model's class and its sizes.
KINDS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("LlamaTokenizer", {}, "LlamaForCausalLM", SIZES),
    ("GemmaTokenizer", PIECES, "Gemma2ForCausalLM", {**GEMMA2, "final_logit_softcapping": 5.0}),
]


@pytest.mark.parametrize(("tokenizer_class", "pieces", "model_class", "sizes"), KINDS, ids=[kind[0] for kind in KINDS])
def test_texts(
    tokenizer_class: str, pieces: dict[str, Any], model_class: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_sentencepiece(files, model_type="bpe", byte_fallback=True, **pieces)
    (files / "x.model").rename(files / "tokenizer.model")
    (files / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": tokenizer_class, "add_bos_token": True})
    )
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(files)
    folder = tmp_path / "saved"
    tokenizer.save_pretrained(folder)  # tokenizer.json
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": None, "max_position_embeddings": 64}
    theirs = hf.make(model_class, **{**sizes, **special, "vocab_size": len(tokenizer)})
    hf.save(theirs, folder)
    with AutoModelForCausalLM.from_pretrained(folder, threads=2) as model:
        pipe = fastattn.pipeline("text-generation", model=model, tokenizer=model.tokenizer)
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            assert model.tokenizer is not None
            assert model.tokenizer.encode(text) == ids
            whole = torch.tensor([ids])
            with torch.no_grad(), hf.exact(theirs):
                for _ in range(N_NEW):
                    whole = torch.cat([whole, theirs(whole).logits[:, -1:].argmax(-1)], 1)
            new = whole[0, len(ids) :]
            (found,) = pipe(text, max_new_tokens=N_NEW, do_sample=False, return_tensors=True)
            assert found["generated_token_ids"][-N_NEW:] == new.tolist()
