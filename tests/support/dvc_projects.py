"""Small DVC projects, run by DVC's own command line or as assets."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dagster_mlops.dvc import DvcResource, pipeline_assets

DVC = str(Path(sys.executable).with_name("dvc"))


class DvcProject:
    """A checkout with a DVC project; `folder` is that of the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, folder: Path, files: dict[str, str], *tracked: str) -> "DvcProject":
        """A project with these files, all committed; those in `tracked` are data that DVC tracks."""
        project = cls(folder)
        DvcResource(repo=str(folder)).init()
        project.write(files)
        if tracked:
            project.dvc("add", "-q", *tracked)
        project.commit()
        return project

    def copy(self, folder: Path) -> "DvcProject":
        return DvcProject(Path(shutil.copytree(self.folder, folder, symlinks=True)))

    def clone(self, folder: Path) -> "DvcProject":
        """A clone, which has the remotes of this checkout, and no data."""
        subprocess.run(["git", "clone", "-q", str(self.folder), str(folder)], check=True)
        local = self.folder / ".dvc/config.local"
        if local.exists():
            shutil.copy(local, folder / ".dvc/config.local")
        return DvcProject(folder)

    def write(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(content).lstrip("\n"))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def yaml(self, name: str) -> Any:
        return yaml.safe_load(self.read(name))

    def sh(self, *command: str, check: bool = True) -> str:
        process = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert not check or process.returncode == 0, process.stdout + process.stderr
        return process.stdout.strip() or process.stderr.strip()

    def git(self, *arguments: str, check: bool = True) -> str:
        return self.sh("git", *arguments, check=check)

    def dvc(self, *arguments: str, check: bool = True) -> str:
        return self.sh(DVC, *arguments, check=check)

    def commit(self, message: str = "work") -> None:
        self.git("add", ".")
        self.git("commit", "-qm", message)

    def remote(self, name: str, *, default: bool = False) -> Path:
        """A folder as a remote, in the configuration that git tracks."""
        place = self.folder.parent / f"remote-{name}"
        place.mkdir(exist_ok=True)
        self.dvc("remote", "add", "-q", *(["-d"] if default else []), name, str(place))
        return place

    def resource(self, **options: Any) -> DvcResource:
        return DvcResource(**{"repo": str(self.folder), "push": False, "lock_timeout": 20, **options})

    def run(
        self, *keys: str, instance: dg.DagsterInstance | None = None, raise_on_error: bool = True, **options: Any
    ) -> dg.ExecuteInProcessResult:
        """Materialize stages, all by default, as assets."""
        assets = pipeline_assets(repo=self.folder)
        steps = [asset for asset in assets if asset.is_materializable]
        return dg.materialize(
            assets,
            selection=dg.AssetSelection.assets(*(keys or steps)),
            resources={"dvc": self.resource(**options)},
            instance=instance,
            raise_on_error=raise_on_error,
        )


def facts(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata of each materialized asset."""
    return {
        event.materialization.asset_key.to_user_string(): {
            key: value.value for key, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def outcomes(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {key: metadata["dvc/outcome"] for key, metadata in facts(result).items()}


def objects_in(folder: Path) -> set[str]:
    """The hashes of the objects in a remote or a cache."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"".join(file.parts[-2:]) for file in files if len(file.parent.name) == 2}


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables}
