"""Environment variables, with many tools the only way to a setting: for a limited time, of a project, of a child."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

# What any program needs to run as it does here: the system, Python, processors, telemetry switches.
_ANY_PROGRAM = """
    PATH HOME USER LOGNAME SHELL TERM HOSTNAME LANG LANGUAGE LC_* TZ TMPDIR TMP TEMP XDG_*_HOME
    LD_* DYLD_* MALLOC_* SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
    PYTHON* VIRTUAL_ENV CONDA_PREFIX
    OMP_* KMP_* GOMP_* MKL_* OPENBLAS_* BLIS_* NUMEXPR_* VECLIB_* NUMBA_* POLARS_MAX_THREADS RAYON_NUM_THREADS
    CUDA_* CUDNN_* CUBLAS_* NVIDIA_* NCCL_* ROCR_* HIP_* HSA_* XLA_* JAX_* TORCH_* PYTORCH_* KERAS_*
    TF_CPP_* TF_ENABLE_* TF_FORCE_* TF_GPU_* TF_XLA_* TF_NUM_*
    HF_HOME HF_HUB_* HF_DATASETS_* TRANSFORMERS_* NLTK_DATA
    DO_NOT_TRACK *_DO_NOT_TRACK *_DISABLE_TELEMETRY DVC_NO_ANALYTICS FEAST_USAGE
"""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CRED|AUTH|WEBHOOK", re.IGNORECASE)

STORES = (
    *("AWS_*", "AZURE_*", "GOOGLE_*", "GCLOUD_*", "CLOUDSDK_*", "OSS_*", "B2_*", "HADOOP_*", "KRB5*", "FSSPEC_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""Patterns of the variables by which programs find object stores and their credentials."""


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables (None: unset), and restore them at the end, even if they changed meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def child_environment(*names: str) -> dict[str, str]:
    """The part of this process's environment that a child gets: what any program needs to run, and `names`.

    A child that runs the user's commands or definitions gets :func:`whole_environment` instead.

        child_environment("BENTOML_*", *STORES)

    Args:
        names: Names of further variables, which may be secrets; ``*`` stands for any characters.
    """

    from dagster_mlops.core.credential_spans import spans  # the command line starts without it

    # A pattern is wider than it looks (NVIDIA_API_KEY, HF_HUB_PROXY): what may be a secret, or has one in its value,
    # has to be named by the caller.
    basis = {
        name: value
        for name, value in matching_variables(*_ANY_PROGRAM.split()).items()
        if not _SECRET.search(name) and not spans(value)
    }
    return {**basis, **matching_variables("TOKENIZERS_PARALLELISM", *names)}


def matching_variables(*names: str) -> dict[str, str]:
    """The variables of this process's environment with one of the `names`; ``*`` stands for any characters."""
    return {name: value for name, value in os.environ.items() if any(fnmatchcase(name, one) for one in names)}


def whole_environment() -> dict[str, str]:
    """All of this process's environment, for what the user wrote to run with it: commands, definitions, git's helpers.

    A stage of DVC or a feature definition may read any variable, as it does in the user's own shell.
    """
    return dict(os.environ)


def project_folder() -> Path:
    """The Dagster project around the working directory, which ``dg`` would use; else the working directory."""
    start = Path.cwd()
    return next((folder for folder in (start, *start.parents) if _is_project(folder)), start)


def add_project_environment() -> None:
    """Add the variables of the project's ``.env`` file, as ``dg`` does; those of the environment stay as they are."""
    file = project_folder() / ".env"
    if file.is_file():
        from dotenv import dotenv_values

        _set({name: value for name, value in dotenv_values(file).items() if value and name not in os.environ})


def _is_project(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    return (folder / "dg.toml").is_file() or (file.is_file() and "[tool.dg" in file.read_text(errors="replace"))


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
