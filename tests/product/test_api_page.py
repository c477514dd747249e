"""Doors: the packages and top-level modules that users import from, and the pages that show them."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
DOCS = ROOT / "docs"
PACKAGES = {
    ".".join(file.parent.relative_to(PLUGINS).parts): file for file in PLUGINS.glob("dagster_mlops/**/__init__.py")
}
MODULES = {f"dagster_mlops.{file.stem}" for file in PLUGINS.glob("dagster_mlops/*.py") if file.stem != "__init__"}
# Named in `feature_store.yaml`, so that only Feast imports them.
FEAST_NAMES = {"dagster_mlops.feast.offline_store", "dagster_mlops.feast.engine"}
OWN_PAGE = {"dagster_mlops.provenance"}
ENTRIES = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)


def _exports(package: str) -> list[str]:
    return getattr(importlib.import_module(package), "__all__", [])


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each `from dagster_mlops… import name`, and of each dotted `import dagster_mlops…`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match(r"dagster_mlops(\.|$)", node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if re.match(r"dagster_mlops(\.|$)", alias.name))


def _shown_to_users() -> Iterator[tuple[str, str]]:
    """Python that users read and copy: each block of a page, and each file of the examples."""
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", *ROOT.glob("examples/*/README.md")]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            yield page.name, block
    for folder in ("examples", "assets", "resources"):
        for file in (ROOT / folder).rglob("*.py"):
            yield str(file.relative_to(ROOT)), file.read_text()


def test_users_are_shown_imports_from_doors_only():
    sources = list(_shown_to_users())
    assert len(sources) > 40
    others = set()
    for origin, source in sources:
        for module, name in _imports(source):
            is_exported = name in _exports(module) if module in PACKAGES else module in MODULES
            if not is_exported:
                others.add(f"{origin}: from {module} import {name}")
    assert others == set()


def test_dotted_names_in_pages_lead_through_doors():
    """`dagster_mlops.feast.online` in a sentence, and `type: dagster_mlops.dvc.DatasetComponent` in YAML.

    Tags in MLflow and entry-point groups begin in the same way, but not with the name of a package.
    """
    others = set()
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        text = re.sub(r"^(from|import) .*$", "", page.read_text(), flags=re.MULTILINE)
        for dotted in set(re.findall(r"(?<![\w./-])dagster_mlops(?:\.[A-Za-z]\w*){2,}", text)):
            package, _, name = dotted.rpartition(".")
            is_door = dotted in {*PACKAGES, *FEAST_NAMES} or package in {*MODULES, *FEAST_NAMES}
            if not (is_door or name in (_exports(package) if package in PACKAGES else ())):
                others.add(f"{page.name}: {dotted}")
    assert others == set()


def test_the_api_page_has_an_entry_for_each_door():
    doors = {package for package in PACKAGES if package != "dagster_mlops" and _exports(package)} - OWN_PAGE
    assert set(ENTRIES) - FEAST_NAMES - MODULES == doors
    assert set(ENTRIES) >= FEAST_NAMES
    assert "dagster_mlops.errors" in ENTRIES
    for module in OWN_PAGE:
        assert f"::: {module}\n" in (DOCS / f"{module.rpartition('.')[2]}.md").read_text()


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_file_never_bears_the_name_of_what_its_package_exports(package):
    """`from package import push` would be the function or the module, depending on which import came first."""
    folder = PACKAGES[package].parent
    siblings = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert siblings & set(_exports(package)) == set()


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_door_exports_what_exists(package):
    module = importlib.import_module(package)
    names = _exports(package)
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_api_page_shows_the_arguments_of_lazy_dataclasses():
    """Griffe knows the decorator of Python's own dataclasses only; `docs/doors.py` shows it the others."""
    extensions = griffe.load_extensions(str(DOCS / "doors.py"))
    library = griffe.load("dagster_mlops", search_paths=[PLUGINS], extensions=extensions)
    dataset = library["provenance.roles.Dataset"]
    assert {"path", "md5", "upstream"} <= {parameter.name for parameter in dataset.parameters}
    assert "dataclass" in dataset.labels
