"""Checks that includes and imports only go downward in the folder list of ARCHITECTURE.md.

    python tools/check_layers.py [ROOT]

It checks every import of fastattn inside src/fastattn, including those in functions, under TYPE_CHECKING, and by
`import_module` of a literal name, and every quoted #include inside csrc. Folders on one line of the lists below may use
each other. pybind11 may only be included in csrc/bindings, headers with intrinsics only in csrc/simd, and CUDA headers
only in csrc/cuda.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# One layer per line, the highest first.
PYTHON_LAYERS = (
    ("__init__", "__main__", "cli", "util"),
    (
        "bertopic",
        "chromadb",
        "dask",
        "keybert",
        "langchain",
        "llama_index",
        "lm_eval",
        "ray",
        "sklearn",
        "spark",
    ),
    ("bench",),
    ("server",),
    ("viz",),
    ("tasks",),
    ("api",),
    ("generation",),
    ("profiling",),
    ("models",),
    ("executors",),
    ("graph",),
    ("tokenizer",),
    ("checkpoint",),
    ("ops", "settings", "jsonfile", "files", "formats", "options", "svg"),
    ("checks",),
    ("errors",),
    ("demo",),
    ("_core", "_cuda"),
)
CPP_LAYERS = (
    ("native_tests",),
    ("bindings",),
    ("cuda",),
    ("program",),
    ("sampling", "weights"),
    ("kv",),
    ("ops",),
    ("runtime",),
    ("kernels",),
    ("simd",),
    ("core",),
)
# Headers that only the named folder may include.
RESERVED = (
    (re.compile(r"[<\"]pybind11/"), "bindings"),
    (re.compile(r"[<\"](\w*intrin|arm_neon|arm_sve|x86gprintrin)\.h[>\"]"), "simd"),
    (re.compile(r"[<\"]cuda(_\w+)?\.h[>\"]"), "cuda"),
)
INCLUDE = re.compile(r"^\s*#\s*include\s*([<\"][^>\"]+[>\"])", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Use:
    """One import or include: its file and line, its own layer and the layer that it names."""

    where: str
    source: str
    target: str


def ranks(layers: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {name: i for i, line in enumerate(layers) for name in line}


def python_uses(package: Path) -> Iterator[Use]:
    """Yield every import of the package's own modules, relative or absolute; other public names count as __init__."""
    modules = {child.stem for child in package.iterdir()} | set(ranks(PYTHON_LAYERS))
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for name in imported(node, (package.name, *parts)):
                target = name.split(".")
                if target[0] == package.name:
                    layer = target[1] if len(target) > 1 and target[1] in modules else "__init__"
                    yield Use(f"{path}:{getattr(node, 'lineno', 0)}", parts[0], layer)


def imported(node: ast.AST, module: tuple[str, ...]) -> list[str]:
    """Return the dotted names that a statement or call in `module` imports.

    `from fastattn import x` names fastattn.x.
    """
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = [*module[: -node.level]] if node.level else []
    base += node.module.split(".") if node.module else []
    if base == [module[0]]:
        return [f"{module[0]}.{alias.name}" for alias in node.names]
    return [".".join(base)]


def cpp_uses(csrc: Path) -> Iterator[Use]:
    """Yield every quoted include of csrc's own headers, and every include that is reserved for one folder."""
    for path in sorted([*csrc.rglob("*.h"), *csrc.rglob("*.cpp"), *csrc.rglob("*.cu")]):
        text = path.read_text(encoding="utf-8")
        folder = path.relative_to(csrc).parts[0]
        for found in INCLUDE.finditer(text):
            where = f"{path}:{text.count(chr(10), 0, found.start(1)) + 1}"
            for pattern, only in RESERVED:
                if pattern.match(found[1]) and folder != only:
                    yield Use(where, folder, f"{found[1]}, reserved for csrc/{only}")
            if found[1].startswith('"'):
                name = found[1].strip('"')
                yield Use(where, folder, name.split("/")[0] if "/" in name else folder)


def complaints(uses: Iterator[Use], layers: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    rank = ranks(layers)
    for use in uses:
        if use.target.startswith(("<", '"')):
            yield f"{use.where}: {use.source} includes {use.target}"
        elif use.source not in rank or use.target not in rank:
            unknown = use.source if use.source not in rank else use.target
            if unknown != "pybind11":
                yield f"{use.where}: {unknown!r} is in no layer; name it in tools/check_layers.py and ARCHITECTURE.md"
        elif rank[use.target] < rank[use.source]:
            yield f"{use.where}: {use.source} uses {use.target}, which is above it"


def check(root: Path) -> list[str]:
    """Return all violations in a checkout."""
    python = python_uses(root / "src" / "fastattn")
    return [*complaints(python, PYTHON_LAYERS), *complaints(cpp_uses(root / "csrc"), CPP_LAYERS)]


def main(argv: list[str]) -> int:
    found = check(Path(argv[0]) if argv else Path(__file__).resolve().parent.parent)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
