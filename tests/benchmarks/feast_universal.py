"""Feast's own universal tests of offline stores, run against this library's store.

    python -m tests.benchmarks.feast_universal FEAST [arguments of pytest, such as -k persist]

FEAST is a checkout of https://github.com/feast-dev/feast, best at the version that is installed. Nothing is written
there, and nothing of it is kept here. Takes about five minutes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.measure import QUIET

FILES = (
    "test_feature_logging.py",
    "test_non_entity_mode.py",
    "test_offline_write.py",
    "test_persist.py",
    "test_push_features_to_offline_store.py",
    "test_universal_historical_retrieval.py",
    "test_universal_materialization.py",
    "test_universal_types.py",
)
# Feast finds the stores under test in a module that this variable names.
STORES = """
from dagster_mlops.feast.offline_store import AsofOfflineStoreConfig
from tests.universal.feature_repos.universal.data_sources.file import DeltaFileSourceCreator, FileDataSourceCreator


class Parquet(FileDataSourceCreator):
    def create_offline_store_config(self):
        return AsofOfflineStoreConfig()


class Delta(DeltaFileSourceCreator):
    def create_offline_store_config(self):
        return AsofOfflineStoreConfig()


AVAILABLE_OFFLINE_STORES = [("local", Parquet), ("local", Delta)]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
"""
# Packages that Feast's tests import for stores in containers and in the cloud, none of which runs here.
PLUGIN = """
import importlib.machinery, importlib.util, sys, types


class Absent(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder:
    names = {name for name in ("testcontainers", "minio", "keycloak", "pymongo") if not importlib.util.find_spec(name)}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
"""
INI = """
[pytest]
addopts = --tb=short -q --import-mode=importlib
"""


def main() -> int:
    """The exit code of pytest."""
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else "FEAST").resolve()
    tests = checkout / "sdk/python/tests"
    if not tests.is_dir():
        raise SystemExit(f"{__doc__}\n{checkout} is not a checkout of Feast: it has no sdk/python/tests.")
    with tempfile.TemporaryDirectory(prefix="feast-universal-") as name:
        folder = Path(name)
        # Beside a link to the tests alone, so that the installed Feast is imported and not the checkout's.
        (folder / "tests").symlink_to(tests)
        for file, text in {"asof_stores.py": STORES, "absent_packages.py": PLUGIN, "pytest.ini": INI}.items():
            (folder / file).write_text(text)
        environment = {**os.environ, **QUIET, "PYTHONPATH": name, "PYTHONWARNINGS": "ignore", "IS_TEST": "True"}
        environment |= {"FULL_REPO_CONFIGS_MODULE": "asof_stores", "FEAST_IS_LOCAL_TEST": "True"}
        files = [f"tests/integration/offline_store/{file}" for file in FILES]
        command = [sys.executable, "-m", "pytest", "-p", "absent_packages", "-p", "no:cacheprovider", "--integration"]
        command += [file for file in files if (folder / file).exists()]
        return subprocess.run([*command, *sys.argv[2:]], cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
