"""Digests of results: a code change that must not change a bit leaves `digests.json` unchanged.

    python -m tests.program.digests            compare what this machine can compute, and print what differs
    python -m tests.program.digests --write    record it, and print what changed

There is one digest per result for all SIMD targets. For bfloat16 there is one for the targets with the portable order
of sums, and one for each target with its own order (docs/numerics.md). Results that depend on numpy's or the C
library's exp are not included: scores of a classification, quality reports and the float64 executor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastattn import _core
from tests.program.digest_models import SUBJECTS
from tests.program.digest_results import EQUAL, RESULTS, Digests, formats_of
from tests.reference.package import SOURCES

RECORD = Path(__file__).with_name("digests.json")
ROOT = Path(__file__).parents[2]
ANY = "any target"
PORTABLE = "portable"
OWN_SUMS = (
    "avx512_bf16",
)  # targets with their own order of bfloat16 sums, also those that this machine does not build
# Model, format, order of bfloat16 sums (or ANY), result: digest.
Record = dict[str, dict[str, dict[str, Digests]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A model in one format on one SIMD target."""

    subject: str
    formats: str
    target: str

    def __str__(self) -> str:
        return f"{self.subject}-{self.formats.replace('/', '_')}-{self.target}"

    @property
    def column(self) -> str:
        """The entry of the record with this target's digests."""
        if "bfloat16" not in self.formats:
            return ANY
        return self.target if self.target in OWN_SUMS else PORTABLE


def cases() -> list[Case]:
    """Return all cases that this machine can compute."""
    active = _core.active_target()
    return [
        Case(name, formats, target)
        for name, subject in SUBJECTS.items()
        for formats in subject.formats
        for target in _core.available_targets()
        if target == active or not subject.active_only
    ]


class Folders:
    """The folders of the models, found or written on first use."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._known: dict[str, Path | None] = {}

    def find(self, subject: str) -> Path | None:
        """Return the folder of a model; None if this machine does not have it."""
        if subject not in self._known:
            folder = self._scratch / subject
            folder.mkdir()
            self._known[subject] = SUBJECTS[subject].folder(folder)
        return self._known[subject]


def compute(case: Case, folder: Path) -> Digests:
    """Compute the digests of a case; a target that is not the active one runs in a separate process."""
    if case.target == _core.active_target():
        return RESULTS[SUBJECTS[case.subject].kind](folder, formats_of(case.formats))
    paths = os.pathsep.join((str(SOURCES), str(ROOT)))
    found = subprocess.run(
        [sys.executable, "-m", "tests.program.digests", "--case", case.subject, case.formats, str(folder)],
        env={**os.environ, "FASTATTN_FORCE_TARGET": case.target, "PYTHONPATH": paths},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer = json.loads(found.stdout)
    assert answer["target"] == case.target
    digests: Digests = answer["digests"]
    return digests


def broken_rules(digests: Digests) -> list[str]:
    """Return pairs of results that must be equal on any machine and are not."""
    pairs = [(a, b) for a, b in EQUAL if a in digests and b in digests]
    return [f"{a!r} and {b!r} differ" for a, b in pairs if digests[a] != digests[b]]


def read_record() -> Record:
    record: Record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return record


def recorded(record: Record, case: Case) -> Digests | None:
    """Return the recorded digests of a case; None if no machine with this order of sums has recorded them."""
    return record.get(case.subject, {}).get(case.formats, {}).get(case.column)


def differences(old: Digests, new: Digests) -> list[str]:
    """Return the results that differ."""
    names = [*old, *(name for name in new if name not in old)]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def merge(record: Record, results: list[tuple[Case, Digests]]) -> Iterator[str]:
    """Merge results into the record and yield what changed. Raises ValueError if a rule of the contract is broken."""
    fresh: dict[tuple[str, str], dict[str, Digests]] = {}
    for case, digests in results:
        columns = fresh.setdefault((case.subject, case.formats), {})
        wrong = broken_rules(digests) + differences(columns.setdefault(case.column, digests), digests)
        if wrong:
            raise ValueError(f"{case}: not recorded, the numerics contract is broken: {'; '.join(wrong)}")
    for (subject, formats), columns in fresh.items():
        known = record.setdefault(subject, {}).setdefault(formats, {})
        yield from (f"{subject} {formats} {line}" for line in merge_columns(known, columns))


def merge_columns(known: dict[str, Digests], fresh: Mapping[str, Digests]) -> Iterator[str]:
    """Merge the digests of one model in one format into the record and yield what changed.

    If a recorded result changed, the records of orders that this CPU lacks are outdated and are removed.
    """
    changed = False
    for column, digests in fresh.items():
        lines = differences(known.get(column, {}), digests)
        changed |= column in known and bool(lines)
        yield from (f"{column}: {line}" for line in lines)
        known[column] = digests
    for column in [column for column in known if changed and column not in fresh]:
        del known[column]
        yield f"{column}: removed; record it again on a CPU that has such a target"


def prune(record: Record) -> Iterator[str]:
    """Remove models, formats and orders of sums that are no longer computed. Yields their names."""
    for subject, by_format in list(record.items()):
        for formats in list(by_format):
            if subject not in SUBJECTS or formats not in SUBJECTS[subject].formats:
                del by_format[formats]
                yield f"{subject} {formats}: removed, no longer computed"
            else:
                columns = (PORTABLE, *OWN_SUMS) if "bfloat16" in formats else (ANY,)
                for column in [column for column in by_format[formats] if column not in columns]:
                    del by_format[formats][column]
                    yield f"{subject} {formats} {column}: removed, no longer computed"
        if not by_format:
            del record[subject]


def write_record(record: Record) -> None:
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def compute_all(scratch: Path) -> Iterator[tuple[Case, Digests]]:
    """Compute all cases whose models this machine has."""
    folders = Folders(scratch)
    for case in cases():
        folder = folders.find(case.subject)
        if folder is None:
            print(f"{case}: left out, the model is not on this machine", file=sys.stderr)
        else:
            yield case, compute(case, folder)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.program.digests", description="Compare digests of results.")
    parser.add_argument("--write", action="store_true", help="record the results of this machine")
    parser.add_argument("--case", nargs=3, metavar=("MODEL", "FORMATS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        subject, formats, folder = options.case
        target = _core.active_target()
        digests = compute(Case(subject, formats, target), Path(folder))
        print(json.dumps({"target": target, "digests": digests}))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        results = list(compute_all(Path(scratch)))
    record = read_record()
    try:
        lines = [*prune(record), *merge(record, results)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    count = sum(len(digests) for _, digests in results)
    print(*lines, f"{len(lines)} changes in {count} results", sep="\n")
    if options.write:
        write_record(record)
    return 1 if lines and not options.write else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
