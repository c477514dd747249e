"""Each extra, really installed alone in an empty environment. Minutes and downloads, so only on request:

DAGSTER_MLOPS_INSTALL_TESTS=1 pytest tests/product/test_extras_install.py -n 0 --timeout 1800
"""

import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = [name for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]]
MODULE = {"k8s": "dagster_k8s"}
ADDITIONS = {"optuna"}  # extras that add to a layer instead of being one

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("DAGSTER_MLOPS_INSTALL_TESTS"), reason="set DAGSTER_MLOPS_INSTALL_TESTS=1"),
    pytest.mark.timeout(1800),
]


def _install(environment: Path, what: str) -> Path:
    """A new environment with `what` in it; its Python."""
    python = environment / "bin" / "python"
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--prerelease=if-necessary-or-explicit", "--python", python, what])
    else:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", what], check=True)
    return python


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_alone_installs_and_the_other_tools_name_theirs(extra, tmp_path):
    python = _install(tmp_path / "venv", f"dagster-mlops[{extra}] @ {ROOT.as_uri()}")
    program = f"""
        import importlib
        from dagster_mlops.core import extra
        from dagster_mlops.errors import MissingExtraError
        import dagster as dg, dagster_mlops.cli, dagster_mlops.lineage
        dg.AssetSelection.from_string("group:x")
        for tool in {[name for name in EXTRAS if name != "all"]!r}:
            if tool not in {ADDITIONS!r}:
                importlib.import_module(f"dagster_mlops.{{tool}}")
            try:
                extra({MODULE!r}.get(tool, tool))
                print(tool, "is installed")
            except MissingExtraError as error:
                print(error)
    """
    command = [str(python), "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    present = [name for name in EXTRAS if f"{name} is installed" in done.stdout]
    if extra == "all":
        assert len(present) == len(EXTRAS) - 1
    else:
        assert extra in present
        missing = [name for name in EXTRAS if name not in present and name != "all"]
        assert [name for name in missing if f"dagster-mlops[{name}]" not in done.stdout] == []
    version = subprocess.run([str(python.with_name("dagster-mlops")), "--version"], capture_output=True, text=True)
    assert version.returncode == 0 and "dagster-mlops" in version.stdout
