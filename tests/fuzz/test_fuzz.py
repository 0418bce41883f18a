"""The fuzzer works, its seeds are valid, and the inputs of its corpus give a working model or a typed error."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import __main__ as driver
from tests.fuzz.mutate import Files, change
from tests.fuzz.seeds import SEEDS, Seed, finite, make, write_folder
from tests.fuzz.worker import attempt
from tests.reference.hang import HANG_SECONDS

N_CHANGES = 25


@pytest.fixture(scope="module", params=SEEDS)
def seed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Files]:
    """Return each seed's name and files."""
    return request.param, make(request.param, tmp_path_factory.mktemp("seeds"))


def test_the_unchanged_folder_works(seed: tuple[str, Files], tmp_path: Path) -> None:
    name, files = seed
    write_folder(tmp_path / "input", files)
    assert attempt(name, tmp_path / "input") == ("works", None)


def test_changed_folders(seed: tuple[str, Files], tmp_path: Path) -> None:
    """The corpus, and changes that are the same in each run."""
    name, files = seed
    rng = random.Random(name)
    for changed in [*driver.corpus_of(name, files), *(change(files, rng) for _ in range(N_CHANGES))]:
        write_folder(tmp_path / "input", changed)
        assert attempt(name, tmp_path / "input")[1] is None


def test_an_empty_folder_stays_empty() -> None:
    assert change({}, random.Random(0)) == {}


def divide(folder: Path) -> None:
    raise ZeroDivisionError(str(folder))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (divide, "ZeroDivisionError"),
        (lambda _: finite([1.0, float("nan")], "logits"), "NaN or infinity without an error"),
        (lambda _: b"a" * (700 << 20), "the process grew"),
        (lambda _: os.abort(), "the worker ended with status -6"),
        (lambda _: time.sleep(HANG_SECONDS), "an input took more than"),
    ],
)
def test_what_counts_as_a_finding(
    use: Callable[[Path], object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEEDS, "planted", Seed(lambda folder: (folder / "config.json").write_text('{"a": 1}'), use))
    if "took more" in expected:
        monkeypatch.setattr(driver, "HANG", 1)
    monkeypatch.setattr(driver, "OUT", tmp_path)
    totals = driver.fuzz(["planted"], HANG_SECONDS, seed=1, most=1)
    assert totals.findings == 1
    texts = [path.read_text() for path in (tmp_path / "findings").glob("planted--*.txt")]
    assert any(expected in text for text in texts), texts
