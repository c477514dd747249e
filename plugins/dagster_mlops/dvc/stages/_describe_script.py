"""Reads a DVC project's stages and pointers into JSON, in a separate process: DVC is slow to import."""

import contextlib
import io
import json
import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.advice import causes
from dagster_mlops.dvc.stages.shown import named_files

if TYPE_CHECKING:
    from dvc.exceptions import DvcException
    from dvc.output import Output
    from dvc.stage import Stage

_READ: set[str] = set()


def _stage(root: Path, stage: "Stage") -> dict[str, Any]:
    from dvc.dependency import ParamsDependency

    params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return {
        "name": stage.name,  # pyright: ignore[reportAttributeAccessIssue] (every PipelineStage has one)
        "file": _name(root, stage.path),
        "wdir": _name(root, stage.wdir),
        "cmd": stage.cmd if isinstance(stage.cmd, list) else [stage.cmd] if stage.cmd else [],
        "desc": stage.desc or "",
        "frozen": bool(stage.frozen),
        "deps": [_place(root, dep) for dep in stage.deps if dep not in params],
        "outs": [
            {
                "path": _place(root, out),
                "cached": bool(out.use_cache),
                "desc": out.annot.desc or "",
                "type": out.annot.type or "",
                "labels": list(out.annot.labels or []),
                "push": bool(out.can_push),
                "remote": out.remote,
            }
            for out in stage.outs
        ],
        "params": {_name(root, dep.fs_path): dep.read_params() for dep in params},
    }


def _data(root: Path, stage: "Stage", out: "Output") -> dict[str, Any]:
    return {
        "file": _name(root, stage.path),
        "path": _place(root, out),
        "desc": stage.desc or out.annot.desc or "",
        "imported": bool(stage.is_import),
    }


def _place(root: Path, item: Any) -> str:
    """The path of an input or output, relative to the repository, or its URL in dvc.yaml (``s3://``, ``ds://``)."""
    return _name(root, item.fs_path) if getattr(item, "protocol", "") == "local" else str(item.def_path)


def _name(root: Path, path: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        _READ.add(os.path.abspath(arguments[0]))


def answer(name: str) -> dict[str, Any]:
    """Stages and pointers of a repository, as DVC itself resolves them, and the files it read; or ``error``."""
    from dvc.exceptions import DvcException

    # Only DVC knows which files define the project (params, vars, templates): it is watched while it reads.
    sys.addaudithook(_note)
    try:
        return _described(name)
    except DvcException as error:
        return {"error": _reason(error)}


def _reason(error: "DvcException") -> str:
    """The text that DVC's command line prints: for a file that it cannot read, the line and what is wrong there."""
    from dvc.exceptions import PrettyDvcException

    if isinstance(error, PrettyDvcException):
        lines = io.StringIO()
        with contextlib.redirect_stderr(lines), contextlib.suppress(ValueError):
            error.__pretty_exc__()
        if text := " ".join(line.strip() for line in lines.getvalue().splitlines() if line.strip()):
            return text
    return ": ".join(dict.fromkeys(str(cause) for cause in causes(error) if str(cause)))


def _described(name: str) -> dict[str, Any]:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    repo, root = Repo(name), Path(name)
    index = repo.index.stages
    repo.index.check_graph()  # DVC refuses a circle and overlapping outputs, too, but not before it runs
    stages = [_stage(root, stage) for stage in index if isinstance(stage, PipelineStage)]
    data = [_data(root, stage, out) for stage in index if not isinstance(stage, PipelineStage) for out in stage.outs]
    files = {stage["file"] for stage in stages}
    # DVC reads this file where it exists: a new one changes the project, too.
    read = {(Path(file).parent / "params.yaml").as_posix() for file in files}
    read |= {_name(root, path) for path in _READ if _defines(Path(path), Path(repo.scm.root_dir).resolve())}
    description = {
        "stages": sorted(stages, key=lambda s: (s["file"], s["name"])),
        "data": sorted(data, key=lambda item: item["path"]),
        "read": sorted(read),
        "metrics": _named(root, repo.index._metrics),
        "plots": _named(root, repo.index._plots),
    }
    repo.close()
    return json.loads(json.dumps(description, default=str))


def _named(root: Path, definitions: dict[str, Any]) -> list[str]:
    """The files that top-level metrics or plots name; `definitions` are by file."""
    return sorted({_name(root, name) for file, entry in definitions.items() for name in named_files(file, entry)})


def _defines(file: Path, top: Path) -> bool:
    """True if a file that was read belongs to the checkout, and not to DVC's folder or to Python's libraries."""
    if file.suffix not in (".yaml", ".yml", ".json", ".toml", ".py") or not file.is_relative_to(top):
        return False
    libraries = {Path(sys.prefix), *(Path(path) for path in site.getsitepackages())}
    return not {".dvc", ".git"} & set(file.parts) and not any(file.is_relative_to(folder) for folder in libraries)
