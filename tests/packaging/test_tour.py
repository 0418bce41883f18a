"""Every function and class that docs/tour.md links to is defined in its file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tour.md"
ANCHOR = re.compile(r"\[`([^`\]]+)`\]\(([^)\s]+)\)")
SOURCE_LINK = re.compile(r"\]\((\.\./(?:src|csrc)/[^)\s]*)\)")
CPP_SUFFIXES = (".cpp", ".h", ".cu")

# Comments and literals, which may name anything. A comment becomes a space, a literal an empty one.
CPP_NOISE = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'""", re.DOTALL)
ARGUMENTS = r"\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
BODY = r"\s*(?:(?:const|noexcept|override|final)\b\s*)*(?:->[^;{}]*|:[^:;{}][^;{}]*)?\{"


def anchors(page: str) -> list[tuple[str, str]]:
    """(name, path relative to the page) of each anchor [`name`](path)."""
    return [(found[1], found[2]) for found in ANCHOR.finditer(page)]


def defines_python(text: str, name: str) -> bool:
    """Whether Python source defines a function, class or method, written as Class.method."""
    scope: list[ast.stmt] = ast.parse(text).body
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = [node for node in scope if isinstance(node, kinds) and node.name == part]
        if not found:
            return False
        scope = found[-1].body
    return True


def class_bodies(text: str, name: str) -> list[str]:
    """The bodies of the classes and structs with a name; C++ without comments and literals."""
    bodies = []
    for head in re.finditer(rf"\b(?:class|struct)\s+(?:alignas\([^)]*\)\s*)?{name}\b[^;{{}}()]*\{{", text):
        depth, at = 1, head.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        bodies.append(text[head.end() : at - 1])
    return bodies


def defines_cpp(text: str, name: str) -> bool:
    """Whether C++ source defines a function, class, struct or member, written as Class::member."""
    text = CPP_NOISE.sub(lambda found: " " if found[0].startswith("/") else found[0][0] * 2, text)
    outer, _, last = name.rpartition("::")
    # After the type of the result: a call never has a body.
    function = re.compile(rf"[\w>&*\]][\s&*]+{re.escape(name)}{ARGUMENTS}{BODY}")
    if function.search(text):
        return True
    if not outer:
        return bool(class_bodies(text, name))
    return any(defines_cpp(body, last) for body in class_bodies(text, outer))


def complaint(name: str, target: str, folder: Path = PAGE.parent) -> str | None:
    """What is wrong with an anchor; None if its file defines the name."""
    path = folder / target
    if not path.is_file():
        return f"{name}: there is no file {target}"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = defines_python(text, name)
    elif path.suffix in CPP_SUFFIXES:
        found = defines_cpp(text, name)
    else:
        return f"{name}: expected a file of Python or C++, got {target}"
    return None if found else f"{name}: {target} does not define it"


def test_the_page_has_anchors_and_every_link_to_source_is_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    targets = [target for _, target in anchors(text)]
    assert targets
    assert targets == SOURCE_LINK.findall(text)
    assert {Path(target).suffix for target in targets} >= {".py", ".cpp", ".h"}


@pytest.mark.parametrize(("name", "target"), sorted(set(anchors(PAGE.read_text(encoding="utf-8")))))
def test_an_anchor_names_a_definition(name: str, target: str) -> None:
    assert complaint(name, target) is None


@pytest.mark.parametrize(("name", "target"), sorted(set(anchors(PAGE.read_text(encoding="utf-8")))))
def test_an_anchor_with_a_made_up_name_is_refused(name: str, target: str) -> None:
    assert complaint(f"{name}_of_nobody", target) == f"{name}_of_nobody: {target} does not define it"
    assert complaint(name, f"{target}.nowhere") == f"{name}: there is no file {target}.nowhere"


PYTHON = '''
"""class Named and def named"""
from elsewhere import imported

assigned = 1

class Outer:
    def method(self): ...
    class Inner:
        async def method(self): ...

def function():
    def local(): ...
    called()
'''


@pytest.mark.parametrize("name", ["Outer", "Outer.method", "Outer.Inner", "Outer.Inner.method", "function"])
def test_definitions_of_python_are_found(name: str) -> None:
    assert defines_python(PYTHON, name)


@pytest.mark.parametrize(
    "name", ["Named", "named", "imported", "assigned", "method", "called", "Outer.Inner.function", "Inner", "Oute"]
)
def test_what_python_does_not_define_is_refused(name: str) -> None:
    assert not defines_python(PYTHON, name)


CPP = """
// void in_line_comment() {}
/* struct InBlockComment { }; */
class Forward;
void declared(int n);
class Outer final : public Base<int> {
public:
    explicit Outer(int n) : n_(n) {}
    void declared_method();
    int inner_method(const std::function<bool()>& poll) const { return called(poll); }
    template <class F> void generic(int64_t n, const F& run) { if (called(run)) { run(n); } }
    struct Inner { int x; };
private:
    int n_;
};
Outer::Outer(int n, int m) : Outer(n + m) {}
template <Format kFormat, int kRows>
FA_INLINE void function(const Args& args, Vec (&sum)[kRows]) {
    const char* text = "void in_literal() {";
    return called(args);
}
const Table& Outer::out_of_class(Engine& engine, const F& poll) const noexcept {
    const auto lambda = [&](int i) { return in_lambda(i); };
    if (engine.member(1)) {
        called(2);
    }
}
bool Other::declared_method() {}
auto trailing(int n) -> std::vector<int> {}
"""


@pytest.mark.parametrize(
    "name",
    ["Outer", "Outer::inner_method", "Outer::generic", "Outer::Inner", "function", "Outer::out_of_class", "trailing"],
)
def test_definitions_of_cpp_are_found(name: str) -> None:
    assert defines_cpp(CPP, name)


@pytest.mark.parametrize(
    "name",
    [
        "Forward",
        "declared",
        "called",
        "in_lambda",
        "in_line_comment",
        "InBlockComment",
        "in_literal",
        "member",
        "out_of_class",
        "Base",
        "Outer::declared_method",
        "Outer::function",
        "Outer::called",
        "Other::inner_method",
        "Oute",
        "function_of_nobody",
    ],
)
def test_what_cpp_does_not_define_is_refused(name: str) -> None:
    assert not defines_cpp(CPP, name)
