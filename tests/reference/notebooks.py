"""Runs the notebooks of examples/ and compares the outputs that they show.

The code cells of a notebook run in order, in one namespace and in the folder of the notebook. As in Jupyter, an output
is what a cell prints, and the value of its last line with its HTML, if it has some.

    python -m tests.reference.notebooks                  # runs all notebooks and writes their outputs
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.pages import ROOT, same_text

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder. (contextlib.chdir needs Python 3.11.)"""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(path: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Run a notebook; yield each code cell with its outputs, in the format of notebooks."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with inside(path.parent), np.printoptions():  # a notebook may change how arrays are printed
        for number, cell in enumerate(code_cells(read(path)), 1):
            yield cell, _run_cell("".join(cell["source"]), f"{path.name}, cell {number}", namespace, number)


def _run_cell(source: str, name: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    tree, value, out = ast.parse(source, name), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if out.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(out.getvalue())})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = _lines(value._repr_html_())
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def texts(outputs: list[dict[str, Any]]) -> list[str]:
    """Return the texts of outputs: what was printed, and each form of a value."""
    parts = [output.get("text") or output.get("data") for output in outputs]
    return ["".join(text) for part in parts for text in (part.values() if isinstance(part, dict) else [part])]


def shows(cell: dict[str, Any], outputs: list[dict[str, Any]]) -> bool:
    """Return whether a cell shows these outputs; numbers may differ as in `same_text`."""
    shown, found = texts(cell["outputs"]), texts(outputs)
    return len(shown) == len(found) and all(map(same_text, shown, found))


def write(path: Path) -> None:
    """Run a notebook and store its outputs in it."""
    notebook = read(path)
    for number, (cell, (_, outputs)) in enumerate(zip(code_cells(notebook), run(path), strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        write(notebook_path)
        print(notebook_path.relative_to(ROOT))
