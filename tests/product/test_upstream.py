"""A tool's private names are used in one file of its folder, where each says which public one is missing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "plugins" / "dagster_mlops"
# A script runs in another process, beside the library rather than in it.
FILES = [file for file in LIBRARY.rglob("*.py") if file.name != "upstream.py" and not file.stem.endswith("_script")]
UPSTREAM = sorted(LIBRARY.rglob("upstream.py"))
# Public although they begin with an underscore: Python documents them.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit", "_make", "_thread", "_getframe"}


def _private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split(".")) and name not in PUBLIC


def _uses(file: Path) -> Iterator[str]:
    """The private names of others that a file uses: of a module it imports, and of an object it was given."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.ImportFrom(module=str(module)) if not module.startswith("dagster_mlops"):
                names = [f"{module}.{alias.name}" for alias in node.names] if node.level == 0 else []
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.Attribute(value=owner, attr=name):
                own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
                own = own or (isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super")
                names = [] if own else [name]
            case ast.Call(func=ast.Name(id="extra" | "getattr" | "hasattr" | "setattr")):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            case _:
                continue
        for name in filter(_private, names):
            yield f"{file.relative_to(LIBRARY)}:{node.lineno} {name}"


def test_private_names_are_used_in_upstream_only():
    assert [use for file in FILES for use in _uses(file)] == []


@pytest.mark.parametrize("file", UPSTREAM, ids=lambda file: file.relative_to(LIBRARY).parts[0])
def test_each_private_name_has_a_link_and_a_test_of_whether_it_is_still_needed(file):
    source = file.read_text()
    tree = ast.parse(source)
    tests = (ROOT / "tests" / file.relative_to(LIBRARY).parts[0] / "test_upstream.py").read_text()
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    for function in functions:
        assert "https://github.com/" in (ast.get_docstring(function) or ""), function.name
        assert f"upstream.{function.name}" in tests, f"{function.name} has no test of whether upstream needs it"
    assert functions or "# https://github.com/" in source
