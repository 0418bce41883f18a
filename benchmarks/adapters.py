"""Measures what LoRA adapters of requests cost: a batch in which each text has its own, against the same batch without.

    python benchmarks/adapters.py [-m FOLDER] [--dtype float32 int8] [--rank 8] [--texts 16]

The adapters have random matrices for all linears of the layers. Both batches run in turns on one model; a ratio is the
median time with adapters divided by that without, over the rounds. `fixed` is the model without any loaded adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastattn as fa
from fastattn.api.causal_lm import CausalLM
from fastattn.checkpoint.safetensors_writer import Entry, header
from fastattn.tasks.demo import demo_model


def write_adapter(folder: Path, model: CausalLM, rank: int, seed: int) -> Path:
    """Write an adapter for every linear in the layers of a model, as peft does."""
    weights = {op.weights[0]: model.traced.weights[op.weights[0]] for op in model.traced.ops if op.kind == "linear"}
    rng, entries, arrays = np.random.default_rng(seed), [], []
    for name, weight in weights.items():
        if ".h." not in f".{name}" and "layers." not in name:
            continue
        out, into = weight.shape
        for part, shape in (("A", (rank, into)), ("B", (out, rank))):
            arrays.append(rng.standard_normal(shape, np.float32) * np.float32(0.02))
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"
            entries.append(Entry(key, "F32", shape, arrays[-1].nbytes))
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(header(entries, {}))
        for array in arrays:
            file.write(array.data)
    return folder


def seconds_of(model: CausalLM, prompts: list[list[int]], configs: list[dict[str, Any]], n_new: int) -> float:
    """Return the seconds of a batch."""
    options = [{**config, "max_new_tokens": n_new, "eos_token_id": -1, "pad_token_id": 0} for config in configs]
    begin = time.perf_counter()
    model.generate(prompts, generation_config=options)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, default=demo_model("text-generation"))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per text")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{args.texts} texts, rank {args.rank}; milliseconds per step of the batch, ratios to it without adapters")
    for dtype in args.dtype:
        with (
            fa.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype) as fixed,
            fa.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype) as model,
            tempfile.TemporaryDirectory() as folder,
        ):
            for i in range(args.texts):
                model.load_adapter(write_adapter(Path(folder) / str(i), model, args.rank, i), f"a{i}")
            prompts = rng.integers(1, model.config.vocab_size, (args.texts, 32)).tolist()
            plain: list[dict[str, Any]] = [{} for _ in prompts]
            own: list[dict[str, Any]] = [{"adapter_name": f"a{i}"} for i in range(args.texts)]
            times: dict[str, list[float]] = {"fixed": [], "none": [], "one each": []}
            for _ in range(args.rounds):
                for name, which, configs in (("fixed", fixed, plain), ("none", model, plain), ("one each", model, own)):
                    times[name].append(seconds_of(which, prompts, configs, args.tokens))
            middle = {name: statistics.median(found[1:]) for name, found in times.items()}
            shown = ", ".join(f"{name} {middle[name] / middle['fixed']:.3f}" for name in ("none", "one each"))
            print(f"{dtype:9} fixed {1e3 * middle['fixed'] / args.tokens:.3f} ms, {shown}", flush=True)


if __name__ == "__main__":
    main()
