"""A packaging tool whose servers start in a fraction of a second, and a deployment of it without Dagster."""

import logging
import sys
from pathlib import Path
from typing import Any

import httpx
import pandas as pd

from dagster_mlops.provenance import Package
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local.access import LOOPBACK
from dagster_mlops.serving.local.blue_green import Plan, rollout
from dagster_mlops.serving.local.processes import free_port
from dagster_mlops.serving.local.state import DeploymentState
from dagster_mlops.serving.local.target import LocalTarget
from dagster_mlops.serving.packager import Server

SERVER = Path(__file__).with_name("small_server.py")


class SmallPackages:
    """Packages of which nothing is stored: the version is the factor of the predictions."""

    def server(self, package: Package, port: int) -> Server:
        return Server(command=[sys.executable, str(SERVER), str(port), package.model_version], environment={})

    def golden(self, package: Package, frame: pd.DataFrame, rows: int) -> Golden:
        xs = [float(x) for x in frame["x"].head(rows)]
        return Golden(rows=[{"x": x} for x in xs], expected=[float(package.model_version) * x for x in xs])

    def alias_version(self, model_name: str, alias: str) -> str | None:
        return None


class Deployment:
    """A state folder, its public port, and rollouts of versions to it."""

    def __init__(self, state_dir: Path, port: int = 0, **options: Any) -> None:
        self.state_dir, self.port, self.options = state_dir.resolve(), port or free_port(), options
        self.url = f"http://127.0.0.1:{self.port}"

    def plan(self, version: str, **options: Any) -> Plan:
        packager, package = SmallPackages(), Package(tag=f"small:{version}", model_version=version, **_PACKAGE)
        chosen = {"request_timeout": 30.0, **self.options, **options}
        access = chosen.pop("access", LOOPBACK)
        timeout = chosen.pop("request_timeout")
        target = LocalTarget(self.state_dir, self.port, timeout, access, access.read_tokens())
        parts: Any = {
            "name": "small",
            "package": package,
            "server": lambda port: packager.server(package, port),
            "target": target,
            "prediction_log": str(self.state_dir / "predictions"),
            "golden_hash": "",
            "golden": lambda: packager.golden(package, pd.DataFrame({"x": [1.0, 2.0]}), 2),
            "ready_timeout": 60,
        }
        return Plan(**{**parts, **chosen})

    def roll_out(self, version: str, **options: Any) -> tuple[DeploymentState, bool]:
        return rollout(self.plan(version, **options), logging.getLogger("small"))

    def ask(self, x: float = 1.0, *, seconds: float = 0, headers: dict[str, str] | None = None) -> httpx.Response:
        row = {"x": x, "seconds": seconds}
        return httpx.post(f"{self.url}/predict", json={"rows": [row]}, headers=headers, timeout=60, trust_env=False)


_PACKAGE: Any = {"tool": "small", "home": "", "model_name": "small"}
