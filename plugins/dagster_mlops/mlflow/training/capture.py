"""The artifacts of a run from which it can be reproduced: code, environment, machine, step and inputs."""

import inspect
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import Read
from dagster_mlops.core.child import ChildError, run_program
from dagster_mlops.core.code_state import KEY, LARGE, NOT_CODE, OF_SUBMODULE, CodeState
from dagster_mlops.core.git import git
from dagster_mlops.core.keys import without_keys
from dagster_mlops.core.run_files import (
    CODE,
    CONFIG_NOT_KEPT,
    DECISIVE,
    DIFF,
    KEPT,
    LICENCES,
    PACKAGES,
    STEP,
    SYSTEM,
    sha256_of,
)
from dagster_mlops.mlflow.lazy import ArtifactRepository
from dagster_mlops.mlflow.training.config_params import kept_config, kept_resources
from dagster_mlops.mlflow.training.function import Training
from dagster_mlops.mlflow.training.packages import installed_packages, requirements
from dagster_mlops.provenance.credentials import masked_strings

_SCHEMA = 1
_LOCK_LIMIT = 20_000_000  # bytes
_HASH = re.compile(rb"(?:--hash=)?\bsha256:[0-9a-f]{64}\b[ \\\n]*")  # as pip, uv and Poetry write the hash of a package
_MOST_NAMED = 20
_DRIVER_TIMEOUT = 5.0  # seconds


def step_facts(
    context: dg.AssetExecutionContext,
    training: Training,
    code: CodeState,
    reads: Sequence[Read],
    *,
    uncommitted: str,
) -> dict[str, Any]:
    """The identity and the inputs of a step, so that another process can rerun it.

    ``asset``, ``partition`` or ``partition_range``, the op's ``config`` and that of its ``resources``, the names of
    secret values that are left out of both (``config_not_kept``), ``seed``, ``function``, the code ``location`` that
    defines it, if Dagster has one (paths in the checkout are relative to it), the checkout as ``code`` (its origin,
    working directory and import path), and ``reads``: the upstream assets with their records, and with whether an IO
    manager loaded them.
    """
    config, secrets = kept_config(context)
    resources, secrets_of_resources = kept_resources(context)
    secrets += secrets_of_resources
    for text in _warnings(code):
        context.log.warning(text)
    return {
        "schema": _SCHEMA,
        "asset": context.assets_def.key.to_user_string(),
        "partition": context.partition_key if context.has_partition_key else "",
        **({"partition_range": list(_range(context))} if context.has_partition_key_range else {}),
        "config": config,
        **({"resources": resources} if resources else {}),
        **({CONFIG_NOT_KEPT: list(secrets)} if secrets else {}),
        "seed": training.seed,
        "registered_model_name": training.registered_model_name,
        "function": f"{training.function.__module__}:{training.function.__qualname__}",
        "location": _location(context, code.toplevel),
        "code": _checkout(code, training.function, uncommitted),
        "reads": [
            {"asset": read.asset, "loaded": read.loaded, "records": [record.to_dict() for record in read.records]}
            for read in reads
        ],
    }


def system_facts(context: dg.AssetExecutionContext) -> dict[str, Any]:
    """The machine as far as it decides a result: Python, system, processor, container, GPUs, libraries, switches."""
    facts: dict[str, Any] = {
        "schema": _SCHEMA,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "container": context.run.tags.get("dagster/image") or os.environ.get("DAGSTER_CURRENT_IMAGE", ""),
        "gpus": _gpus(),
        **switches(),
    }
    return {name: value for name, value in facts.items() if value not in ("", None, [], {})}


def switches() -> dict[str, Any]:
    """The facts of the system that a training can change: variables, and PyTorch's switches."""
    # A machine without TZ has its time zone in a link, by name.
    zone = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    variables = {"TZ": zone} if zone else {}
    variables |= {name: os.environ[name] for name in DECISIVE if name in os.environ}
    return {"environment": variables, "torch": _torch()}


def capture_files(
    *, code: CodeState, lock: Path | None, step: Mapping[str, Any], system: Mapping[str, Any]
) -> dict[str, bytes]:
    """The contents of the files in the run's folder ``code/``, by name, as far as they are there before it trains."""
    licences = {package["name"]: package["licence"] for package in installed_packages()}
    files = {
        PACKAGES: requirements().encode(),
        LICENCES: _json(licences),
        # Config and records may hold values that are not JSON, and URLs with passwords.
        STEP: _json(masked_strings(step)),
        SYSTEM: _json(system),
    }
    if code.diff:
        files[DIFF] = code.diff
    if lock and lock.stat().st_size <= _LOCK_LIMIT:
        files[lock.name] = lock.read_bytes()
    return files


def holds_key(lock: Path) -> bool:
    """True for a lock file with a password, such as one in the address of a package index."""
    content = _HASH.sub(b"", lock.read_bytes())  # most of its text, and no more than that
    return without_keys(content, lock.name) is not content


def log_files(store: ArtifactRepository, files: Mapping[str, bytes]) -> None:
    """Upload all of them to the run's folder ``code/`` at once."""
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        store.log_artifacts(scratch, CODE)


def log_json(store: ArtifactRepository, name: str, content: Mapping[str, Any]) -> str:
    """Upload one file of JSON to the run's folder ``code/``, and return its hash."""
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        file = Path(scratch, name)
        file.write_bytes(text := _json(content))
        store.log_artifact(str(file), CODE)
    return sha256_of(text)


def stored_hashes(store: ArtifactRepository, apart: Collection[str]) -> dict[str, str]:
    """The hashes of the files in the run's folder ``code/`` that others have written: a sweep, an earlier attempt."""
    names = {Path(file.path).name for file in store.list_artifacts(CODE) if not file.is_dir} & set(KEPT)
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        return {
            name: sha256_of(Path(store.download_artifacts(f"{CODE}/{name}", scratch)).read_bytes())
            for name in names - set(apart)
        }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, default=str) + "\n").encode()


def partitions_of(context: dg.AssetExecutionContext) -> str:
    """The partition, or ``first...last`` when one run trains on several; empty when the asset has none."""
    if context.assets_def.partitions_def is None:  # the run may be of other assets' partitions
        return ""
    if context.has_partition_key:
        return context.partition_key
    return "...".join(_range(context)) if context.has_partition_key_range else ""


def _range(context: dg.AssetExecutionContext) -> tuple[str, str]:
    return context.partition_key_range.start, context.partition_key_range.end


def _location(context: dg.AssetExecutionContext, toplevel: str) -> dict[str, str]:
    """The code location of the definitions; empty for `dg.materialize`, which has none."""
    origin = context.run.job_code_origin
    pointer = getattr(origin.repository_origin, "code_pointer", None) if origin else None
    names = ("module", "python_file", "fn_name", "attribute", "working_directory")
    fields = {name: str(value) for name in names if (value := getattr(pointer, name, None))}
    for name in ("python_file", "working_directory"):
        if name in fields:
            fields[name] = _inside(fields[name], toplevel) or os.path.abspath(fields[name])
    return fields


def _inside(path: str, toplevel: str) -> str:
    """A path relative to the checkout, with or without resolved links; empty for one elsewhere."""
    paths = (resolve(path) for resolve in (os.path.abspath, os.path.realpath))
    return next((os.path.relpath(p, toplevel) for p in paths if toplevel and Path(p).is_relative_to(toplevel)), "")


def _import_roots(function: Callable[..., Any], toplevel: str) -> list[str]:
    """Python's import path in the checkout, without virtual environments."""
    inner = inspect.unwrap(function)
    source = Path(inspect.getsourcefile(inner) or "").absolute()
    module = source.parent if source.name == "__init__.py" else source.with_suffix("")
    names = (inner.__module__ or "").split(".")  # empty for code that was not imported
    # An editable install may use an import hook instead of the path.
    function_root = [str(module.parents[len(names) - 1])] if list(module.parts[-len(names) :]) == names else []
    installed = [os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix) if _inside(prefix, toplevel)]
    folders = [
        f
        for f in (*sys.path, *function_root)
        if not any(Path(os.path.realpath(f)).is_relative_to(i) for i in installed)
    ]
    return list(dict.fromkeys(root for folder in folders if (root := _inside(folder, toplevel))))


def _keys_first(code: CodeState) -> dict[str, str]:
    """The uncommitted changes that a run does not keep, with the reasons: first what looks like a key, and not all."""
    order = (KEY, OF_SUBMODULE, LARGE, NOT_CODE)
    return dict(sorted(code.left_out.items(), key=lambda item: order.index(item[1]))[:_MOST_NAMED])


def not_kept(code: CodeState) -> list[dict[str, str]]:
    """Rows of the uncommitted changes that the run does not keep, or not to the byte; those that are no code apart."""
    rows = [{"file": name, "reason": reason} for name, reason in _keys_first(code).items() if reason != NOT_CODE]
    marked = [name for name in code.without_keys if name not in code.left_out]
    return rows + [{"file": name, "reason": "a value looks like a key: a mark is in its place"} for name in marked]


def _warnings(code: CodeState) -> Iterator[str]:
    """Warnings of what a rerun will lack; what is not code by its suffix is only named if the training reads it."""
    keys = [name for name, reason in code.left_out.items() if reason == KEY]
    if keys or code.without_keys:
        yield (
            "What looks like a key is not kept with the run's code: "
            f"{', '.join(list(dict.fromkeys([*keys, *code.without_keys]))[:_MOST_NAMED])}. Keep keys in files that git "
            "ignores, or in the environment. A rerun has a mark in place of a value in the code."
        )
    changes = [name for name, reason in code.left_out.items() if reason not in (KEY, NOT_CODE)]
    if changes:
        yield (
            f"{len(changes)} uncommitted changes are not kept with the run, and a rerun will lack them: "
            f"{', '.join(changes[:_MOST_NAMED])}. Commit the files that the training reads, or keep them in DVC."
        )


def _checkout(code: CodeState, function: Callable[..., Any], uncommitted: str) -> dict[str, Any]:
    if not code.commit:
        return {}
    origin = git(Path(code.toplevel), "remote", "get-url", "origin")
    checkout = {
        "commit": code.commit,
        "branch": code.branch,
        "dirty": code.dirty_hash,
        "toplevel": code.toplevel,
        "origin": origin.stdout.decode(errors="replace").strip() if origin.returncode == 0 else "",
        "cwd": _inside(os.getcwd(), code.toplevel),
        "path": _import_roots(function, code.toplevel),
        "submodules": dict(code.submodules),
        "uncommitted": uncommitted,
        "left_out": _keys_first(code),
        "without_keys": list(code.without_keys),
    }
    return {name: value for name, value in checkout.items() if value}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> list[dict[str, str]]:
    """The NVIDIA GPUs that the driver lists; none without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    columns = ("name", "driver_version", "memory.total", "uuid")
    query = [command, f"--query-gpu={','.join(columns)}", "--format=csv,noheader"]
    try:
        process = run_program(query, timeout=_DRIVER_TIMEOUT)
    except (OSError, ChildError):
        return []
    lines = process.stdout.decode(errors="replace").splitlines() if process.returncode == 0 else []
    rows = [line.split(", ") for line in lines]
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _torch() -> dict[str, Any]:
    """PyTorch's versions and switches; empty when the training has not imported it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    cudnn = torch.backends.cudnn
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version() if cudnn.is_available() else None,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_benchmark": cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
