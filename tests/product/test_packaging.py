"""The promises of the package: cheap to load, an extra per tool, nothing shipped or told by accident."""

import importlib
import inspect
import json
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap  # what a code location tells the UI
from dagster.components.core.package_entry import discover_package_objects  # what `dg list components` reads
from dagster.components.core.snapshot import get_package_entry_snap
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.warm_python import warm_python

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "plugins" / "dagster_mlops"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra != "all"]
SLOW_IMPORTS = ("bentoml", "evidently", "feast", "mlflow", "mlflow_serving", "monitoring", "optuna", "river")
LAYERS = [extra for extra in EXTRAS if (LIBRARY / extra).is_dir()]  # the others add to a layer
TOOLS = ["bentoml", "dagster_k8s", "dvc", "evidently", "feast", "kubernetes", "mlflow", "optuna"]
HEAVY = [*TOOLS, "git", "lightgbm", "matplotlib", "numpy", "pandas", "pyarrow", "sklearn"]


def _python(program: str, *, cwd: Path | None = None) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- loading


def test_loading_every_entry_point_imports_no_tool():
    modules = [e.value.partition(":")[0] for group in _groups() for e in entry_points(group=group)]
    modules = [module for module in modules if module.startswith("dagster_mlops")]
    assert len(modules) >= 2 * len(LAYERS) - 2
    program = f"""
        import importlib, json, sys
        import dagster
        bare, grown = set(sys.modules), {{}}
        for module in {modules!r}:
            importlib.import_module(module)
            grown[module] = sorted({{name.split(".")[0] for name in set(sys.modules) - bare}} & set({HEAVY!r}))
        print(json.dumps({{module: names for module, names in grown.items() if names}}))
    """
    assert json.loads(_python(program)) == {}


def _groups() -> list[str]:
    return list(PROJECT["entry-points"])


@pytest.mark.parametrize("tool", LAYERS)
def test_all_is_what_is_exposed(tool):
    module = importlib.import_module(f"dagster_mlops.{tool}")
    exposed = {name: value for name in dir(module) if not inspect.ismodule(value := getattr(module, name))}
    exposed |= {name: value for name, value in vars(module).items() if not inspect.ismodule(value)}
    names = {name for name in exposed if not name.startswith("_")} - {"TYPE_CHECKING", "lazy_door"}
    assert set(module.__all__) == names
    described = [exposed[name] for name in names if callable(exposed[name])]
    described = [value for value in described if inspect.isclass(value) or inspect.isroutine(value)]
    assert all(value.__doc__ for value in described)


def test_every_entry_point_of_the_project_is_installed_and_loads():
    for group in _groups():
        installed = {e.name: e for e in entry_points(group=group) if e.value.startswith("dagster_mlops")}
        assert set(installed) == set(PROJECT["entry-points"][group]), "install the project again: its metadata is old"
        for entry in installed.values():
            entry.load()


# --- components


@pytest.mark.parametrize("tool", LAYERS)
def test_the_components_of_a_tool_explain_themselves(tool):
    components = discover_package_objects([f"dagster_mlops.{tool}"])
    assert bool(components) == (tool in PROJECT["entry-points"]["dagster_dg_cli.registry_modules"]) or tool == "k8s"
    for key, component in components.items():
        assert isinstance(component, type) and issubclass(component, dg.Component)
        snap = get_package_entry_snap(key, component)
        assert snap.summary and len(snap.summary) < 200, key
        assert "type: dagster_mlops." in (snap.description or ""), f"{key.name}: its docstring has no YAML example"
        # Not from the JSON schema: Dagster drops the description of every field that has a default.
        fields = getattr(component, "model_fields", {})
        assert fields and "model" not in fields  # it would hide Resolvable.model()
        assert [name for name, field in fields.items() if not field.description] == [], key.name
        assert component.get_model_cls()  # every field can be said in YAML


# --- extras


def _closure(extra: str) -> set[str]:
    """The distributions that `pip install dagster-mlops[extra]` brings, by the metadata of what is installed here."""
    from importlib.metadata import PackageNotFoundError, requires

    found: set[tuple[str, str]] = set()
    waiting = [("dagster-mlops", extra), ("dagster-mlops", "")]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        try:
            declared = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for needed in declared:
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                waiting += [(canonicalize_name(needed.name), option) for option in ("", *needed.extras)]
    return {name for name, _ in found}


# The least that uses a tool, offline.
USES = {
    "dvc": "from dagster_mlops.dvc import DvcResource\nwith DvcResource(repo='.').open(): pass",
    "feast": "from dagster_mlops.feast import FeastResource\nFeastResource(repo='.').store()",
    "mlflow": "from dagster_mlops.mlflow import MlflowResource\n"
    "MlflowResource(tracking_uri='sqlite:///mlflow.db').client()",
    "bentoml": "from dagster_mlops.bentoml import BentomlResource\n"
    "BentomlResource(home='home', tracking_uri='sqlite:///mlflow.db').bentos()",
    "mlflow_serving": "from dagster_mlops.mlflow_serving import MlflowServingResource\n"
    "MlflowServingResource(home='home', tracking_uri='sqlite:///mlflow.db').client()",
    "river": "from dagster_mlops.river import RiverResource\nRiverResource().detector()",
    "evidently": "from dagster_mlops.evidently import EvidentlyResource\nimport pandas\n"
    "EvidentlyResource(reports='reports').dataset(pandas.DataFrame({'a': [1.0, 2.0]}))",
    "gto": "from dagster_mlops.gto import GtoResource\nwith GtoResource(repo='.').open(): pass",
    "k8s": "from dagster_mlops.core.extras import extra\nextra('dagster_k8s')",
    "optuna": "from dagster_mlops.core.extras import extra\nextra('optuna')",
}
STORE = """\
project: small
provider: local
registry: {registry_type: sql, path: "sqlite:///FOLDER/registry.db"}
online_store: {type: sqlite, path: FOLDER/online.db}
offline_store: {type: duckdb}
entity_key_serialization_version: 3
"""


warm_dagster = warm_python("dagster")  # which every extra comes with


@pytest.mark.slow
@pytest.mark.usefixtures("warm_dagster")
@pytest.mark.parametrize(
    "extra", [pytest.param(name, marks=pytest.mark.thorough if name in SLOW_IMPORTS else ()) for name in EXTRAS]
)
def test_one_extra_is_enough_for_its_tool_and_the_others_name_theirs(extra, tmp_path):
    """As if only this extra were installed; `test_extras_install.py` installs it really."""
    (tmp_path / "feature_store.yaml").write_text(STORE.replace("FOLDER", str(tmp_path)))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("")
    program = f"""
        import sys
        from importlib.metadata import packages_distributions
        from packaging.utils import canonicalize_name
        kept = {_closure(extra)!r}
        absent = {{
            module for module, owners in packages_distributions().items()
            if not {{canonicalize_name(owner) for owner in owners}} & kept
        }}

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in absent:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import importlib
        from dagster_mlops.errors import MissingExtraError
        import dagster_mlops.cli, dagster_mlops.lineage
        for tool in {LAYERS!r}:
            importlib.import_module(f"dagster_mlops.{{tool}}")
        for tool, use in {USES!r}.items():
            needed = {{"k8s": "dagster_k8s", "mlflow_serving": "mlflow"}}.get(tool, tool)
            if tool != {extra!r} and needed not in absent:
                continue  # e.g. mlflow, which the bentoml extra brings along
            try:
                exec(use)
                found = "works"
            except MissingExtraError as error:
                found = "names " + str(error).rpartition("[")[2].rstrip("]'")
            except ModuleNotFoundError as error:
                # pandas comes with evidently: not our import.
                found = "names " + tool if error.name == "pandas" and "import pandas" in use else repr(error)
            expected = "works" if tool == {extra!r} else "names " + tool
            assert found == expected, f"{{tool}}: {{found}}"
        print("all as promised")
    """
    assert "all as promised" in _python(program, cwd=tmp_path)


# --- what is shipped


def test_the_wheel_holds_the_library_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "dagster_mlops",
        f"dagster_mlops-{PROJECT['version']}.dist-info",
    }
    shipped = {name for name in names if name.endswith(".py")}
    assert shipped == {file.relative_to(LIBRARY.parent).as_posix() for file in LIBRARY.rglob("*.py")}
    assert "dagster_mlops/py.typed" in names


def test_versions_agree():
    assert importlib.import_module("dagster_mlops").__version__ == PROJECT["version"]


# --- bounds


def _bound(extra: str, name: str) -> Requirement:
    declared = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    [found] = [requirement for requirement in declared if requirement.name == name]
    return found


def _locked(name: str) -> str:
    match = re.search(rf"^{re.escape(name)}==([^\s\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match, f"{name} is not in requirements.lock"
    return match[1]


def test_no_resolver_can_settle_on_an_ancient_bentoml():
    bound = _bound("bentoml", "bentoml").specifier
    assert not bound.contains("0.5.3") and not bound.contains("1.4.38")
    assert bound.contains(_locked("bentoml"))


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # Dagster's own parser calls a parameter that is in beta
def test_antlr_is_the_one_that_reads_selection_strings():
    bound = _bound("dvc", "antlr4-python3-runtime").specifier
    assert not bound.contains("4.9.3") and not bound.contains("4.14.0")
    assert bound.contains(_locked("antlr4-python3-runtime"))
    # A wrong antlr breaks every selection string, and nothing before it is used.
    assert dg.AssetSelection.from_string('group:"x" or +key:"a/b"')


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_requirement_has_a_lower_bound_that_the_lock_meets(extra):
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(EXTRAS)
            continue
        assert any(spec.operator in (">=", "==", "~=") for spec in requirement.specifier), text
        assert requirement.specifier.contains(_locked(requirement.name), prereleases=True), text


# --- secrets


@pytest.mark.parametrize("tool", LAYERS)
def test_a_code_location_never_tells_the_secrets_of_its_resources(tool, monkeypatch):
    door = importlib.import_module(f"dagster_mlops.{tool}")
    exposed = [getattr(door, name) for name in door.__all__]
    resources = [x for x in exposed if isinstance(x, type) and issubclass(x, dg.ConfigurableResource)]
    assert resources or tool in ("k8s", "monitoring")
    for resource in resources:
        _assert_told_by_name_only(resource, monkeypatch)


def _assert_told_by_name_only(resource: type[dg.ConfigurableResource], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [name for name, field in resource.model_fields.items() if field.annotation in (str, str | None)]
    for name in texts:
        monkeypatch.setenv(f"TEST_{name.upper()}", "postgresql://ml:s3cret@db/x")
    bound = resource(**{name: dg.EnvVar(f"TEST_{name.upper()}") for name in texts})

    @dg.asset(required_resource_keys={"tool"})
    def uses() -> None: ...

    definitions = dg.Definitions(assets=[uses], resources={"tool": bound})
    told = dg.serialize_value(RepositorySnap.from_def(definitions.get_repository_def()))
    assert "s3cret" not in told
    assert all(f"TEST_{name.upper()}" in told for name in texts)
