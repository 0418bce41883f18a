"""Every result has the bits recorded in `digests.json`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from fastattn import _core
from tests.program.digests import (
    Case,
    Folders,
    Record,
    broken_rules,
    cases,
    compute,
    differences,
    merge,
    prune,
    read_record,
    recorded,
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """Yield the models; the random ones are hundreds of megabytes, so they are removed after the session."""
    scratch = tmp_path_factory.mktemp("digests")
    yield Folders(scratch)
    shutil.rmtree(scratch)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_results_have_the_recorded_bits(case: Case, folders: Folders) -> None:
    folder = folders.find(case.subject)
    if folder is None:
        pytest.skip(f"this machine does not have the model {case.subject}")
    digests = compute(case, folder)
    assert not broken_rules(digests)
    expected = recorded(read_record(), case)
    if expected is None:
        pytest.skip(
            f"unrecorded: {case.subject} in {case.formats} on {case.target}; only its equal results were compared"
        )
    assert not differences(expected, digests), (
        "results changed; if that is what the change is for, run python -m tests.program.digests --write"
    )


def results_of(case: Case, **digests: str) -> tuple[Case, dict[str, str]]:
    return case, digests


def test_targets_that_disagree_are_not_recorded() -> None:
    one, other = (Case("gpt2-litbank", "int8", target) for target in ("scalar", "avx2"))
    record: Record = {}
    with pytest.raises(ValueError, match="logits: a -> b"):
        list(merge(record, [results_of(one, logits="a"), results_of(other, logits="b")]))
    assert record == {}


def test_results_that_must_be_equal_are_not_recorded_otherwise() -> None:
    digests = {"text in a batch": "a", "text alone": "a", "text in chunks": "b"}
    with pytest.raises(ValueError, match="'text in chunks' differ"):
        list(merge({}, [(Case("gpt2-litbank", "int8", "scalar"), digests)]))


def test_a_change_removes_the_records_of_other_orders() -> None:
    """They came from the same code, so they are outdated too."""
    case = Case("gpt2-litbank", "bfloat16", "avx2")
    record: Record = {"gpt2-litbank": {"bfloat16": {"portable": {"logits": "a"}, "avx512_bf16": {"logits": "b"}}}}
    assert list(merge(record, [results_of(case, logits="a")])) == []
    assert recorded(record, Case("gpt2-litbank", "bfloat16", "avx512_bf16")) == {"logits": "b"}
    changes = list(merge(record, [results_of(case, logits="c")]))
    assert [line.split(": ")[0] for line in changes] == [
        "gpt2-litbank bfloat16 portable",
        "gpt2-litbank bfloat16 avx512_bf16",
    ]
    assert record == {"gpt2-litbank": {"bfloat16": {"portable": {"logits": "c"}}}}


def test_orders_of_bfloat16_sums() -> None:
    for target in _core.built_targets():
        assert _core.bfloat16_sums(target) == Case("minilm", "bfloat16", target).column
        assert Case("minilm", "int8", target).column == "any target"


def test_a_result_that_is_missing_or_new_is_a_difference() -> None:
    assert differences({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == ["a: 1 -> None", "c: None -> 3"]


def test_the_record_has_nothing_that_is_no_longer_computed() -> None:
    assert list(prune(read_record())) == []
    assert len(list(prune({"gone": {"int8": {}}, "minilm": {"int3": {}, "int8": {}}}))) == 2
    record: Record = {"minilm": {"int8": {"any target": {}}, "bfloat16": {"avx2": {}, "portable": {}}}}
    assert [line.split(": ")[0] for line in prune(record)] == ["minilm bfloat16 avx2"]
