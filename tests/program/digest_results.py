"""The results of a model that are recorded as digests, and those that the numerics contract makes equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AUTO_CLASSES, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.graph.ir import Step
from tests.program.digest_models import HEADS, random_ids

Digests = dict[str, str]
Formats = Mapping[str, str | None]

# One row, whole tiles of rows with and without a partial one, and more positions than a KV block has.
LENGTHS = (1, 6, 17, 65)
WIDE_LENGTHS = (1, 6, 9)
# A prompt that is fed in these chunks; chunks of one token are decode steps.
CHUNKS = (7, 1, 27, 1, 1, 28)
WIDE_CHUNKS = (6, 1, 1, 1)
# The number of last tokens whose logits are computed: they take most of the time of a wide model on the scalar target.
WIDE_KEEP = 3
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "greedy with a repetition penalty": {"repetition_penalty": 0.6},
    "sampled": {"do_sample": True},
    "sampled from the logits": {"do_sample": True, "nan": "finite"},
    "sampled with top_p": {"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.8},
    "sampled with min_p": {"do_sample": True, "top_k": 0, "min_p": 0.02, "temperature": 3.0},
    "sampled from all": {"do_sample": True, "top_k": 0, "temperature": 1.5, "repetition_penalty": 1.2},
    "sampled twice": {"do_sample": True, "top_k": 7, "num_return_sequences": 2},
}
WIDE_SAMPLING = {name: SAMPLING[name] for name in ("greedy", "sampled with top_p")}
TEXTS = ["A cat sits on the mat.", "good", "", "An uneven, often funny film that never quite finds its way home."]
POOLING = ("mean", "max", "cls", "mean_sqrt_len_tokens", "lasttoken")
# Results with the same numbers, computed in different ways.
EQUAL = (
    ("text in a batch", "text alone"),
    ("text in a batch", "text in chunks"),
    ("sampled", "sampled from the logits"),
    ("types of zeros", "classification logits"),
)


def formats_of(name: str) -> Formats:
    """Return the options of `from_pretrained` for a name such as "int8/float32"."""
    dtype, kv_dtype, head_dtype = (*name.split("/"), None, None)[:3]
    return {"dtype": dtype, "kv_dtype": kv_dtype, "head_dtype": head_dtype}


def digest(arrays: Sequence[Any]) -> str:
    """Return 16 hex digits for the bytes, shapes and types of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, np.asarray(array).dtype.newbyteorder("<"))
        found.update(f"{little.dtype.str}{little.shape}".encode())
        found.update(little.tobytes())
    return found.hexdigest()[:16]


def batch_of(model: Any, lengths: Sequence[int]) -> list[NDArray[np.int32]]:
    """Return texts of random ids."""
    return [random_ids(100 + n, n, model.config.vocab_size) for n in lengths]


def run_in_chunks(model: Any, ids: NDArray[np.int32], chunks: Sequence[int], keep: int) -> NDArray[np.float32]:
    """Return the logits of the last `keep` ids, with all ids fed to one KV cache in chunks."""
    assert sum(chunks) == len(ids)
    cache, logits = model.new_cache(), []
    for chunk in chunks:
        begin = cache.length
        step = Step(
            token_ids=ids[begin : begin + chunk],
            cu_seqlens=np.array([0, chunk], np.int32),
            positions=np.arange(begin, begin + chunk, dtype=np.int32),
            wanted=np.arange(max(0, chunk - keep), chunk, dtype=np.int32),
            caches=(cache,),
        )
        logits.append(model.executor.run(step)["logits"])
    return np.concatenate(logits)[-keep:]


def generated(model: Any, prompts: Any, sampling: Mapping[str, Mapping[str, Any]], n_tokens: int) -> Digests:
    """Return tokens and their log-probabilities, chosen in several ways."""
    found = {}
    for name, options in sampling.items():
        out = model.generate(
            prompts, max_new_tokens=n_tokens, eos_token_id=-1, seed=11, return_dict_in_generate=True, **options
        )
        found[name] = digest([*out.sequences, *out.logprobs])
    return found


def layers(model: Any, batch: Any) -> Digests:
    """Return hidden states and attention maps of every layer."""
    out = model(batch, output_hidden_states=True, output_attentions=True)
    return {
        "hidden states": digest([row for layer in out.hidden_states for row in layer]),
        "attentions": digest([row for layer in out.attentions for row in layer]),
    }


def gpt2(folder: Path, formats: Formats) -> Digests:
    with AutoModelForCausalLM.from_pretrained(folder, **formats) as model:
        batch = batch_of(model, LENGTHS)
        logits = model(batch).logits
        return {
            "logits": digest(logits),
            "text in a batch": digest([logits[-1]]),
            "text alone": digest([model(batch[-1]).logits]),
            "text in chunks": digest([run_in_chunks(model, batch[-1], CHUNKS, LENGTHS[-1])]),
            **layers(model, batch[1:3]),
            **generated(model, batch[:2], SAMPLING, 8),
        }


def wide_gpt2(folder: Path, formats: Formats) -> Digests:
    with AutoModelForCausalLM.from_pretrained(folder, **formats) as model:
        batch = batch_of(model, WIDE_LENGTHS)
        logits = model(batch, logits_to_keep=WIDE_KEEP).logits
        return {
            "logits": digest(logits),
            "text in a batch": digest([logits[-1]]),
            "text in chunks": digest([run_in_chunks(model, batch[-1], WIDE_CHUNKS, WIDE_KEEP)]),
            **generated(model, batch[:2], WIDE_SAMPLING, 3),
        }


def bert(folder: Path, formats: Formats) -> Digests:
    found = {}
    with AutoModelForSequenceClassification.from_pretrained(folder, **formats) as classifier:
        batch = batch_of(classifier, LENGTHS)
        types = [random_ids(200 + len(ids), len(ids), 2) for ids in batch]
        found["classification logits"] = digest(classifier(batch).logits)
        found["types of zeros"] = digest(classifier(batch, token_type_ids=[0 * ids for ids in batch]).logits)
        found["types of both kinds"] = digest(classifier(batch, token_type_ids=types).logits)
    with AutoModel.from_pretrained(folder, **formats) as model:
        out = model(batch)
        found["last hidden state"] = digest(out.last_hidden_state)
        found["pooler output"] = digest([] if out.pooler_output is None else out.pooler_output)
        found["text in a batch"] = digest([out.last_hidden_state[-1]])
        found["text alone"] = digest([model(batch[-1]).last_hidden_state])
        found |= layers(model, batch[1:3])
    for mode in POOLING:
        config = {"word_embedding_dimension": 128, "pooling_mode": mode}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        found[f"sentence vectors, {mode}"] = sentence_vectors(folder, formats)
    return found


def sentences(folder: Path, formats: Formats) -> Digests:
    with AutoModel.from_pretrained(folder, **formats) as model:
        batch = batch_of(model, WIDE_LENGTHS)
        out = model(batch)
        return {
            "last hidden state": digest(out.last_hidden_state),
            "pooler output": digest(out.pooler_output),
            "text in a batch": digest([out.last_hidden_state[-1]]),
            "text alone": digest([model(batch[-1]).last_hidden_state]),
            "sentence vectors": sentence_vectors(folder, formats),
        }


def sentence_vectors(folder: Path, formats: Formats) -> str:
    options = {name: value for name, value in formats.items() if name != "head_dtype"}
    with fastattn.SentenceTransformer(folder, **options) as model:
        return digest([model.encode(TEXTS)])


def wide_bert(folder: Path, formats: Formats) -> Digests:
    with AutoModelForSequenceClassification.from_pretrained(folder, **formats) as model:
        out = model(batch_of(model, WIDE_LENGTHS), output_hidden_states=True)
        return {
            "classification logits": digest(out.logits),
            "hidden states": digest([row for layer in out.hidden_states for row in layer]),
        }


def heads(folder: Path, formats: Formats) -> Digests:
    found = {}
    for name, task in HEADS.items():
        with AUTO_CLASSES[task].from_pretrained(folder / name, **formats) as model:
            out = model(batch_of(model, LENGTHS), output_hidden_states=True)
            rows = [row for key in out if key != "hidden_states" for row in out[key]]
            found[name] = digest([*rows, *(row for layer in out.hidden_states for row in layer)])
    return found


RESULTS: Mapping[str, Callable[[Path, Formats], Digests]] = {
    "gpt2": gpt2,
    "wide-gpt2": wide_gpt2,
    "bert": bert,
    "sentences": sentences,
    "wide-bert": wide_bert,
    "heads": heads,
}
