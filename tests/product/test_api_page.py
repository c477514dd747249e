"""The API page has an entry for everything that the other pages and the README import."""

import ast
import importlib
import re
from pathlib import Path

import yaml

DOCS = Path(__file__).parents[2] / "docs"
# What an entry of the page shows: a package with all that it exposes, or the named members of a module.
ENTRIES = re.findall(r"^::: ([\w.]+)\n((?: {4}.*\n)*)", (DOCS / "api.md").read_text(), re.MULTILINE)
SHOWN = {
    module: yaml.safe_load(options).get("options", {}).get("members") if options else None
    for module, options in ENTRIES
}
OWN_PAGE = {"dagster_mlops.provenance"}


def test_every_entry_exists():
    for module, members in SHOWN.items():
        # Read rather than imported: some modules are only Feast's to import.
        path = Path(DOCS.parent, "plugins", *module.split("."))
        source = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
        assert ast.get_docstring(source), module
        nodes = [node for statement in source.body for node in (statement, *getattr(statement, "targets", ()))]
        named = {getattr(node, "name", None) or getattr(node, "id", None) for node in nodes}
        assert set(members or ()) - named == set(), module


def test_what_the_pages_import_has_an_entry():
    missing = set()
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                module = getattr(node, "module", None) or ""
                if (
                    not isinstance(node, ast.ImportFrom)
                    or not module.startswith("dagster_mlops.")
                    or module in OWN_PAGE
                ):
                    continue
                names = SHOWN.get(module, ()) or importlib.import_module(module).__all__ if module in SHOWN else ()
                missing |= {f"{module}.{alias.name} ({page.name})" for alias in node.names if alias.name not in names}
    assert missing == set()
