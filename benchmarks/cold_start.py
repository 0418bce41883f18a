"""From the start of a process to the first token of GPT-2 124M, and the memory it took.

    python benchmarks/cold_start.py [--rounds 7] [--model gpt2]

The file is in the page cache. Peak memory is compared with the weights as float32 (what they take when packed, but for
the padding of panels to 64 columns).
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

from make_models import build

CHILD = """
import json, resource, sys, time
begin = time.perf_counter()
import fastattn as fa
imported = time.perf_counter()
model = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
model.generate([1000 + i for i in range(32)], max_new_tokens=1, eos_token_id=-1)
first = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"import_s": imported - begin, "load_s": loaded - imported, "run_s": first - loaded, "peak": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    path = build(options.model)
    (path / "model.safetensors").read_bytes()  # into the page cache
    samples: list[dict[str, float]] = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(path), str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        samples.append({"process_s": time.perf_counter() - begin, **json.loads(done.stdout)})
    weights = Path(path / "model.safetensors").stat().st_size
    for name in ("process_s", "import_s", "load_s", "run_s"):
        taken = [sample[name] for sample in samples]
        print(f"{name:10} median {statistics.median(taken):.3f}  best {min(taken):.3f}")
    peak = max(sample["peak"] for sample in samples)
    print(f"peak memory {peak / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB")
    print(f"allowed: 1.15 x weights + 120 MB = {(1.15 * weights + 120e6) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
