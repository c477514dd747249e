"""Rules for the whole library: components explain themselves, variables and errors are listed, tools stay apart."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster.components.core.package_entry import discover_package_objects  # what `dg list components` reads

import dagster_mlops
from dagster_mlops import errors

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "plugins" / "dagster_mlops"
LAYERS = ["bentoml", "dvc", "evidently", "feast", "k8s", "mlflow"]


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(dagster_mlops.__path__, "dagster_mlops."):
        if not module.name.rpartition(".")[2].startswith("_") and "serving.service" not in module.name:
            yield module.name


# --- components


def _components() -> dict[str, type[dg.Component]]:
    found: dict[str, type] = {}
    for name in _modules():
        for value in vars(importlib.import_module(name)).values():
            own = inspect.isclass(value) and value.__module__ == name and issubclass(value, dg.Component)
            if own and "build_defs" in vars(value):
                found[value.__name__] = value
    return found


COMPONENTS = _components()


def test_the_components_that_users_find_are_among_them():
    offered = {key.name for tool in LAYERS for key in discover_package_objects([f"dagster_mlops.{tool}"])}
    assert {name.rpartition(".")[2] for name in offered} <= set(COMPONENTS) and len(COMPONENTS) >= 10


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_field_of_a_component_is_explained_in_its_schema(name):
    """Editors, `dg check yaml` and the UI show what the schema says; here with all parts that it refers to."""
    model = COMPONENTS[name].get_model_cls()
    assert model is not None
    schema = model.model_json_schema()
    parts = {name: schema, **schema.get("$defs", {})}
    # The attributes of an asset, its conditions and its partitions are Dagster's own; so is what it says of them.
    theirs = re.compile(
        r"^(AssetAttributes|.*KeyModel|.*Partitions?DefinitionModel|.*AssetsDefUpdate.*|.*SpecUpdate.*)"
    )
    silent = [
        f"{part}.{field}"
        for part, told in parts.items()
        if not theirs.match(part)
        for field, facts in told.get("properties", {}).items()
        if not facts.get("description")
    ]
    assert silent == []


# --- environment variables

VARIABLE = re.compile(r"DAGSTER_MLOPS_[A-Z_]+")


def test_every_environment_variable_is_documented_once():
    page = (ROOT / "docs" / "reference-pipeline.md").read_text()
    documented = re.findall(r"^\| `(DAGSTER_MLOPS_[A-Z_]+)`", page, flags=re.MULTILINE)
    sources = [file for folder in (LIBRARY, ROOT / "assets", ROOT / "resources") for file in folder.rglob("*.py")]
    used = {name for file in sources for name in VARIABLE.findall(file.read_text())}
    assert sorted(documented) == sorted(used)


def test_names_of_environment_variables_are_written_out():
    """Else the test above would not see them."""
    built = [str(f) for f in LIBRARY.rglob("*.py") if re.search(r"DAGSTER_MLOPS_[A-Z_]*\{", f.read_text())]
    assert built == []


def test_no_variable_is_read_for_the_library_and_for_its_reference_location():
    """The variables of a served process are not those that choose what a code location is made of."""
    ours = {n for f in LIBRARY.rglob("*.py") for n in re.findall(r'"(DAGSTER_MLOPS_[A-Z_]+)"', f.read_text())}
    sources = [file for folder in (ROOT / "assets", ROOT / "resources") for file in folder.rglob("*.py")]
    theirs = {n for f in sources for n in re.findall(r'environ\S*["\'](DAGSTER_MLOPS_[A-Z_]+)', f.read_text())}
    # The demo hands the choice of the executor on.
    assert ours & theirs <= {"DAGSTER_MLOPS_EXECUTOR"}


# --- errors


def test_the_tree_of_errors_is_drawn_as_it_is():
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    defined = {
        value.__name__
        for name in _modules()
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and issubclass(value, errors.DagsterMlopsError)
    }
    public = {name for name in defined if not name.startswith("_")}  # users catch the base of a private one
    assert sorted(drawn) == sorted(public - {"DagsterMlopsError"})


# --- tools

NAMES = {
    "bentoml": r"\bBentoML\b|\bbentos?\b", "dvc": r"\bDVC\b|\bdvc\b", "evidently": r"\bEvidently\b",
    "feast": r"\bFeast\b|\bfeast\b", "k8s": r"\bKubernetes\b", "mlflow": r"\bMLflow\b|\bmlflow\b",
}  # fmt: skip
# By tool: others that users of it have by its own choice, with the reason.
NEEDED = {
    "bentoml": {"mlflow"},  # bentos are made of models in MLflow's registry
    "k8s": {"mlflow"},  # what its executor imports before steps start
}
# Files that speak of another tool because they handle what it leaves.
HANDLED = {
    "feast/commands.py": {"dvc"},  # an option that names a DVC repository
    "feast/rebuild/replay.py": {"dvc"},  # source files that DVC keeps are read back at their version
    "feast/rebuild/snapshot.py": {"dvc"},  # and noted by their hash
    "mlflow/server/connection.py": {"feast"},  # MLflow imports Feast's plugin of itself
    "mlflow/training/capture.py": {"dvc"},  # an untracked file that is too large: DVC is one way out
}


@pytest.mark.parametrize("tool", LAYERS)
def test_what_a_tool_says_names_no_other_tool(tool):
    said: list[str] = []
    for file in (LIBRARY / tool).rglob("*.py"):
        name = str(file.relative_to(LIBRARY))
        allowed = {tool, *NEEDED.get(tool, ()), *HANDLED.get(name, ())}
        for node in ast.walk(ast.parse(file.read_text())):
            # Sentences: descriptions, messages and docstrings, but no names of modules, keys and columns.
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                others = [other for other, words in NAMES.items() if other not in allowed]
                said += [f"{name}:{node.lineno} {o}" for o in others if re.search(NAMES[o], node.value)]
    assert said == []


SHARED = ["core", "evaluation", "lineage", "monitoring", "promotion", "provenance", "serving"]


def test_what_all_tools_share_takes_no_extra_of_one_of_them_for_granted():
    """A user of MLflow's server, who lacks psutil, is not to install BentoML."""
    naming = [
        f"{file.relative_to(LIBRARY)}:{node.lineno}"
        for folder in SHARED
        for file in (LIBRARY / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("extra", "LazyModule")
        and any(keyword.arg == "extra" and isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
    ]
    assert naming == [], "leave it to `extra` to look up who requires the module"


# Errors that are not of ours: shown to a user of pytest, to a client who sent the value, and not at all.
MAY_BE_RAISED_FROM_ANY = {
    "testing/tools.py": "AssertionError",
    "serving/runtime/scoring.py": "ValueError",
    "core/commands.py": "typer.Exit",
}


class _Raises(ast.NodeVisitor):
    """Errors that carry another one, which Dagster stores and shows: raised from it, or while it is handled."""

    def __init__(self) -> None:
        self.kinds: list[tuple[int, str, str]] = []
        self._in_handler = False

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        before, self._in_handler = self._in_handler, True
        self.generic_visit(node)
        self._in_handler = before

    def visit_Raise(self, node: ast.Raise) -> None:
        cause = ast.unparse(node.cause) if node.cause else ""
        if isinstance(node.exc, ast.Call) and cause != "None" and (cause or self._in_handler):
            self.kinds.append((node.lineno, ast.unparse(node.exc.func), cause))


def test_an_error_that_carries_another_masks_its_credentials():
    """The errors of `errors.py` do; any other needs `from masked_error(error)`, or `from None`."""
    ours = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.DagsterMlopsError)
    }
    seen, bare = 0, []
    for file in LIBRARY.rglob("*.py"):
        raises = _Raises()
        raises.visit(ast.parse(file.read_text()))
        name = file.relative_to(LIBRARY).as_posix()
        seen += len(raises.kinds)
        # `kind` and `error` are parameters that take a class of ours.
        allowed = {*ours, "kind", "error", MAY_BE_RAISED_FROM_ANY.get(name)}
        bare += [
            f"{name}:{line} raises {kind} from {cause or 'what it handles'}"
            for line, kind, cause in raises.kinds
            if kind.rpartition(".")[2] not in allowed and kind not in allowed and not cause.startswith("masked_error(")
        ]
    assert not bare and seen > 40
