"""The valid folders that fuzzing starts from, and what it does with each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastattn as fa
from tests.fuzz.mutate import Files
from tests.models import test_gguf_decoders as decoders
from tests.reference import gguf_files
from tests.reference.checkpoints import GPT2, gpt2_tensors, safetensors, write_bert, write_distilbert, write_gpt2
from tests.tasks import tokenizers
from tests.tasks.sentence_folders import MEAN, NORMALIZE, POOLING, dense, write_model
from tests.tasks.tokenizer_folders import VOCABULARIES

IDS = [[1, 2, 3, 4], [5]]
TEXTS = ["a good film", "", "the cat, a dog running! \U0001f600 é <s> [MASK]", "bad " * 40]


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid folder, and the work that a user does with it: load, run, check that results are finite."""

    write: Callable[[Path], object]
    use: Callable[[Path], object]


def finite(found: Any, what: str) -> None:
    if not np.isfinite(found).all():
        raise AssertionError(f"{what}: NaN or infinity without an error")


def generate(folder: Path) -> None:
    lm = fa.AutoModelForCausalLM.from_pretrained(folder, threads=1)
    with lm:
        out = lm.generate(IDS, max_new_tokens=3, return_dict_in_generate=True)
        for row in out.logprobs:
            finite(row, "logprobs")
        lm(IDS, output_hidden_states=True)


def classify(folder: Path) -> None:
    with fa.AutoModelForSequenceClassification.from_pretrained(folder, threads=1) as model:
        model(IDS)


def hidden(folder: Path) -> None:
    with fa.AutoModel.from_pretrained(folder, threads=1) as model:
        model(IDS, output_attentions=True)


def encode(folder: Path) -> None:
    finite(fa.SentenceTransformer(folder, threads=1).encode(TEXTS), "embeddings")


def tokenize(folder: Path) -> None:
    tokenizer = fa.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer(TEXTS, padding=tokenizer.pad_token is not None, truncation=True, max_length=8)


def quantize(folder: Path) -> None:
    """Convert, and load the result: a folder that `quantize` wrote must load."""
    out = folder.with_name("quantized")
    shutil.rmtree(out, ignore_errors=True)
    fa.quantize(folder, out, dtype="int8", threads=1)
    try:
        model = fa.AutoModelForCausalLM.from_pretrained(out, threads=1)
    except fa.FastattnError as error:
        raise AssertionError(f"quantize wrote a folder that does not load: {error}") from error
    with model:
        model(IDS)


def write_sharded(folder: Path) -> None:
    tensors = gpt2_tensors()
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (folder / "config.json").write_text(json.dumps(GPT2))
    for file, part in shards.items():
        (folder / file).write_bytes(safetensors({name: tensors[name] for name in part}))
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file in shards for name in shards[file]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_half(folder: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in gpt2_tensors().items()}
    write_gpt2(folder)
    (folder / "model.safetensors").write_bytes(safetensors(half))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3], "do_sample": True, "top_k": 5}))


def write_quantized(dtype: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        source = write_gpt2(folder.with_name("source"))
        fa.quantize(source, folder, dtype=dtype, threads=1)

    return write


def write_tokenizer_json(kind: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        getattr(tokenizers, f"write_{kind}")(folder)
        fa.AutoTokenizer.from_pretrained(folder).raw.save(str(folder / "tokenizer.json"))

    return write


def write_unigram(folder: Path) -> None:
    VOCABULARIES["t5"](folder)
    (folder / "x.model").rename(folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))


def write_gguf(folder: Path) -> None:
    """Write a GPT-2 with blocks of several types and a byte-level BPE."""
    rng, config = np.random.default_rng(0), {**GPT2, "n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 266}
    tensors = gguf_files.gpt2_stored({**config, "bos_token_id": 265})
    for kind, name in (("Q4_0", "ffn_up"), ("Q8_0", "ffn_down"), ("Q5_1", "attn_qkv")):
        shape = tensors[f"blk.0.{name}.weight"].shape
        tensors[f"blk.0.{name}.weight"] = gguf_files.random_tensor(rng, kind, (shape[0], shape[1]))
    metadata = {
        **gguf_files.gpt2_metadata({**config, "bos_token_id": 265, "eos_token_id": 265}),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [
            *(tokenizers.LETTERS[byte] for byte in range(256)),
            *(merge.replace(" ", "") for merge in tokenizers.MERGES),
            "<|endoftext|>",
        ],
        "tokenizer.ggml.token_type": np.array([1] * 265 + [3], np.int32),
        "tokenizer.ggml.merges": tokenizers.MERGES,
    }
    (folder / "model.gguf").write_bytes(gguf_files.gguf_bytes(metadata, tensors))


def write_llama_model(folder: Path) -> None:
    """Write a Llama without scaled positions."""
    config = {**decoders.SIZES, "model_type": "llama"}
    more = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    tensors = decoders.stored_of(config, decoders.tensors_of(config))
    (folder / "model.gguf").write_bytes(gguf_files.gguf_bytes({**decoders.metadata_of(config), **more}, tensors))


def write_gguf_llama(folder: Path) -> None:
    """Write a BPE over characters with scores."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefghi", "ab", "\u2581a"]
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)], np.int32)
    metadata = {
        **{key: value for key, value in gguf_files.gpt2_metadata().items() if "tokenizer" not in key},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": -np.arange(len(pieces), dtype=np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    (folder / "model.gguf").write_bytes(gguf_files.gguf_bytes(metadata, {}))


SEEDS = {
    "gpt2": Seed(write_gpt2, generate),
    "gpt2-sharded": Seed(write_sharded, generate),
    "gpt2-half": Seed(write_half, generate),
    "gpt2-int8": Seed(write_quantized("int8"), generate),
    "gpt2-int4": Seed(write_quantized("int4"), generate),
    "gpt2-bfloat16": Seed(write_quantized("bfloat16"), generate),
    "quantize": Seed(write_gpt2, quantize),
    "bert": Seed(write_bert, classify),
    "distilbert": Seed(write_distilbert, hidden),
    "sentence": Seed(lambda folder: write_model(folder, POOLING, dense(12, 7), NORMALIZE), encode),
    "sentence-pooling": Seed(lambda folder: write_model(folder, ("Pooling", MEAN, None), settings={}), encode),
    "tokenizer-bert": Seed(tokenizers.write_bert, tokenize),
    "tokenizer-gpt2": Seed(tokenizers.write_gpt2, tokenize),
    "tokenizer-roberta": Seed(tokenizers.write_roberta, tokenize),
    "tokenizer-bert-json": Seed(write_tokenizer_json("bert"), tokenize),
    "tokenizer-gpt2-json": Seed(write_tokenizer_json("gpt2"), tokenize),
    "tokenizer-unigram": Seed(write_unigram, tokenize),
    "gguf": Seed(write_gguf, generate),
    "gguf-llama": Seed(write_llama_model, generate),
    "gguf-tokenizer": Seed(write_gguf, tokenize),
    "gguf-tokenizer-llama": Seed(write_gguf_llama, tokenize),
}


def read_folder(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_folder(folder: Path, files: Files) -> None:
    """Replace the content of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def make(name: str, root: Path) -> Files:
    """Return the files of a seed."""
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    if not name.startswith("gpt2-") or name in ("gpt2-sharded", "gpt2-half"):
        folder.mkdir(parents=True)
    SEEDS[name].write(folder)
    return read_folder(folder)
