"""Real packages on the import path, with the entry points that pip would install."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest


def install_package(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, files: Mapping[str, str], tools: Mapping[str, str]
) -> None:
    """Put modules (name → source) and their entry points in the group ``dagster_mlops.tools`` on the import path."""
    metadata = folder / "acme_tools-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tools\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in tools.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[dagster_mlops.tools]", *lines, ""]))
    for name, source in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(folder))
