"""Every notebook of examples/ runs and shows its outputs; a wrong one is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference.notebooks import NOTEBOOKS, code_cells, read, run, shows, write

MAX_BYTES = 600_000  # of a notebook with its pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_outputs(path: Path) -> None:
    pytest.importorskip("sklearn")
    for cell, outputs in run(path):
        assert shows(cell, outputs), "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_format_of_a_notebook(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert [cell["execution_count"] for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert path.stat().st_size <= MAX_BYTES
    assert any("text/html" in output.get("data", {}) for cell in code_cells(notebook) for output in cell["outputs"])


def test_the_illustrated_guides_have_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "bert-elmo-and-co", "bert-for-the-first-time", "gpt2", "neural-machine-translation",
        "neural-network-basics", "numpy", "word2vec",
    }  # fmt: skip


def notebook_of(*sources: str) -> dict[str, Any]:
    cells = [{"cell_type": "code", "source": [source], "outputs": [], "execution_count": None} for source in sources]
    return {"cells": [*cells, {"cell_type": "markdown", "source": ["text"]}]}


def test_outputs_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook_of("x = 2\nprint('a')\nx + 1", "x", "y = x")))
    assert not all(shows(cell, outputs) for cell, outputs in run(path))
    write(path)
    assert [cell["outputs"] for cell in code_cells(read(path))][1][0]["data"] == {"text/plain": ["2"]}
    assert all(shows(cell, outputs) for cell, outputs in run(path))
    path.write_text(path.read_text().replace("print('a')", "print('b')"))
    assert [shows(cell, outputs) for cell, outputs in run(path)] == [False, True, True]


def test_an_error_names_the_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook_of("1", "1 / 0")))
    with pytest.raises(ZeroDivisionError) as error:
        list(run(path))
    assert any("a.ipynb, cell 2" in str(entry.path) for entry in error.traceback)
