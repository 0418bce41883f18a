"""Measures the time from process start to the first token of GPT-2 124M, and the memory used.

    python benchmarks/cold_start.py [--rounds 7] [--model gpt2] [--dtype int8 [--quantized]]

The file is in the page cache. Peak memory is compared with the packed weights. --quantized loads a directory that
`fastattn quantize` wrote, instead of rounding the float checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fastattn
from make_models import build

CHILD = """
import sys
sys.path = [folder for folder in sys.path if folder]  # not the current directory, which -c puts first
import json, resource, time
begin = time.perf_counter()
import fastattn as fa
imported = time.perf_counter()
model = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=int(sys.argv[2]), dtype=sys.argv[3])
loaded = time.perf_counter()
model.generate([1000 + i for i in range(32)], max_new_tokens=1, eos_token_id=-1)
first = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seconds = {"import_s": imported - begin, "load_s": loaded - imported, "run_s": first - loaded}
print(json.dumps(seconds | {"peak": peak, "weights": model.executor.weight_bytes}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "int8", "int4"))
    parser.add_argument("--quantized", action="store_true")
    options = parser.parse_args()
    path = build(options.model)
    if options.quantized:
        path = quantized(path, options.dtype)
    (path / "model.safetensors").read_bytes()  # load it into the page cache
    samples: list[dict[str, float]] = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(path), str(options.threads), options.dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        samples.append({"process_s": time.perf_counter() - begin, **json.loads(done.stdout)})
    weights = samples[0]["weights"]
    for name in ("process_s", "import_s", "load_s", "run_s"):
        taken = [sample[name] for sample in samples]
        print(f"{name:10} median {statistics.median(taken):.3f}  best {min(taken):.3f}")
    peak = max(sample["peak"] for sample in samples)
    print(f"peak memory {peak / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB")
    factor = 1.15 if options.dtype == "float32" else 1.2
    print(f"allowed: {factor} x weights + 120 MB = {(factor * weights + 120e6) / 1e6:.0f} MB")


def quantized(path: Path, dtype: str) -> Path:
    """Return the same model in a directory of packed weights, created on first use."""
    target = path.with_name(f"{path.name}-{dtype}")
    if not (target / "model.safetensors").exists():
        fastattn.quantize(path, target, dtype=dtype)
    return target


if __name__ == "__main__":
    main()
