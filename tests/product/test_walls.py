"""The walls of the house: who may import whom, and no way in a circle.

core ← verbs ← tools ← lineage, cli. A verb imports no tool, a tool no other tool, and the rooms of a folder (a wing, or
a file on its shelf) depend on each other in one direction only. Stored models come in by one door.
"""

import ast
import functools
import graphlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "dagster_mlops"
LIBRARY = Path(__file__).parents[2] / "plugins" / PACKAGE
VERBS = {"evaluation", "promotion", "serving", "monitoring"}
CORE = {*(path.stem for path in LIBRARY.glob("*.py")), "provenance", "core"} - {"cli", "__init__"}
# A new tool stands behind the wall without being named here.
TOOLS = {path.parent.name for path in LIBRARY.glob("*/__init__.py")} - {*CORE, *VERBS, "testing", "lineage"}


def _name(file: Path) -> str:
    parts = file.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(file): file for file in LIBRARY.rglob("*.py")}


def _imports(module: str) -> set[str]:
    """The modules of the library that a module imports when it runs, at any depth of nesting."""
    file = MODULES[module]
    tree = ast.parse(file.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    imports: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            imports |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return {name for name in imports if name in MODULES and name != module and not name.endswith("_script")}


@functools.cache
def _graph() -> dict[str, set[str]]:
    # A script runs in another process, by its path: nothing here imports it.
    return {module: _imports(module) for module in MODULES if not module.endswith("_script")}


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_layer_reaches_only_what_stands_below_it():
    below = {name: CORE for name in CORE}
    below |= {verb: {*CORE, *VERBS} for verb in VERBS}
    below |= {tool: {*CORE, *VERBS, tool} for tool in TOOLS}
    below |= {"testing": {*CORE, *VERBS, "testing"}, "lineage": {*CORE, *VERBS, "lineage"}}
    below |= {"cli": {*CORE, *VERBS, "lineage"}, "__init__": set()}
    wrong = {
        f"{module} → {target}"
        for module, targets in _graph().items()
        for target in targets
        if target in _graph() and target != PACKAGE and _layer(target) not in below[_layer(module)]
    }
    assert wrong == set()


def _cycle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_a_detour():
    assert _cycle(_graph()) == []


def _room(module: str) -> str:
    """A wing, or a file on the shelf of its folder."""
    parts = module.split(".")
    return ".".join(parts[:3]) if len(parts) > 3 else module


def test_the_rooms_of_a_folder_depend_on_each_other_in_one_direction():
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, targets in _graph().items():
        rooms[_room(module)] |= {_room(target) for target in targets} - {_room(module)}
    assert _cycle(rooms) == []


_DOOR = "core.model_loading"
_LOADS_A_MODEL = {
    _DOOR: "it judges first",
    "mlflow.models.flavors": "the process that stored the model verifies it",
    "serving.model_check": "the process that builds a bento has judged it before",
    "bentoml.service": "a copied file: the hash is that of the model that was judged when the bento was built",
    "mlflow_serving.scoring_app": "a copied file: the hash is that of the model that was judged for the package",
    "mlflow.training._answers_script": "a process of its own: the files were compared with their record before",
}
_UNPICKLES = {
    "mlflow.training._answers_script": "rows and answers that the same comparison has written",
    "mlflow.training._values_script": "of the model above",
    "mlflow.training.checkpoints": "weights only",
}


def _names_used(tree: ast.AST) -> Iterator[str]:
    """The methods and functions that are called, as they are written, and what is imported from other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(PACKAGE):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _users(*endings: str) -> set[str]:
    """The modules that use a name with one of these endings."""
    return {
        module.removeprefix(f"{PACKAGE}.")
        for module, file in MODULES.items()
        if any(name.endswith(endings) for name in _names_used(ast.parse(file.read_text())))
    }


def test_a_stored_model_is_loaded_in_one_place_which_judges_it():
    assert _users(".load_model", ".load_model_with_mlflow_config") == set(_LOADS_A_MODEL)
    pickles = ("pickle.load", "pickle.loads", ".read_pickle", "joblib.load", "dill.load", "dill.loads", "torch.load")
    assert _users(*pickles, "skops.load", "skops.io.load", "skops.io.loads", ".Unpickler") == set(_UNPICKLES)
