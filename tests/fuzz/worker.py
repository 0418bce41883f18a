"""Changes folders and uses them, in one process. Inputs with new outcomes become further starting points."""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import resource
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastattn.errors import FastattnError
from tests.fuzz.mutate import Files, change
from tests.fuzz.seeds import SEEDS, write_folder

MAX_GROWTH_BYTES = 600 << 20  # of the process's largest size, by one input of less than a megabyte
# FileNotFoundError and similar errors: the input removed a file, or gives it an invalid name.
EXPECTED = (FastattnError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(slots=True)
class Pool:
    """The inputs that changes start from: the valid folder and those with outcomes not seen before, per seed."""

    valid: Mapping[str, Files]
    interesting: dict[str, list[Files]] = field(default_factory=dict)
    outcomes: set[str] = field(default_factory=set)

    def choose(self, rng: random.Random, names: list[str]) -> tuple[str, Files]:
        name = rng.choice(names)
        found = self.interesting.get(name, [])
        return name, rng.choice(found) if found and rng.random() < 0.5 else self.valid[name]

    def add(self, name: str, files: Files, outcome: str) -> bool:
        """Add an input if its outcome is new."""
        key = f"{name}: {outcome}"
        if key in self.outcomes:
            return False
        self.outcomes.add(key)
        self.interesting.setdefault(name, []).append(files)
        return True


def template(error: BaseException) -> str:
    """Return the type of an error, where it was raised, and its message without the values in it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|[-\d.e+]+|\S{20,}", "_", str(error))
    return f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno} {text[:80]}"


def use(name: str, folder: Path) -> str:
    """Use a folder; return the outcome. An error that is not typed propagates."""
    try:
        SEEDS[name].use(folder)
    except EXPECTED as error:
        if not str(error) or len(str(error)) > 4000:
            raise AssertionError(f"message of {len(str(error))} characters") from error
        return template(error)
    return "works"


def attempt(name: str, folder: Path) -> tuple[str, str | None]:
    """Return the outcome of using a folder, and what is wrong with it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome, problem = use(name, folder), None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, problem = template(error), traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if problem is None and grown > MAX_GROWTH_BYTES:
        problem = f"the process grew by {grown >> 20} MiB"
    return outcome, problem


def run(pool: Pool, folder: Path, names: list[str], seed: int, report: int, corpus: Path) -> None:
    """Try inputs without end; write a byte to `report` before each, and save new inputs and findings in `corpus`."""
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    seen: set[str] = set()
    n = 0
    while True:
        name, start = pool.choose(rng, names)
        files = change(start, rng)
        write_folder(folder / "input", files)
        (folder / "name").write_text(name)
        os.write(report, b".")
        outcome, problem = attempt(name, folder / "input")
        n += 1
        if problem is not None and outcome not in seen:
            seen.add(outcome)
            save(corpus / "findings" / f"{name}--{os.getpid()}-{n}", files, problem)
            os.write(report, b"!")
        elif problem is None and pool.add(name, files, outcome):
            os.write(report, b"+")
            changed = {key: data for key, data in files.items() if pool.valid[name].get(key) != data}
            if changed.keys() >= files.keys() - pool.valid[name].keys():
                save(corpus / "new" / f"{name}--{os.getpid()}-{n}", changed, None)
        if n % 50 == 0:
            gc.collect()


def save(folder: Path, files: Files, problem: str | None) -> None:
    """Write the files of an input, and what is wrong with it next to them."""
    write_folder(folder, files)
    if problem is not None:
        folder.with_suffix(".txt").write_text(problem, encoding="utf-8", errors="replace")
