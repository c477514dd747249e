"""Options and secrets of remotes, which stay in memory; bounded waits and retries; advice about errors."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import dagster as dg

from dagster_mlops.core import secrets
from dagster_mlops.core.advice import Advice, advice
from dagster_mlops.core.extras import extra
from dagster_mlops.core.waits import retry
from dagster_mlops.dvc.lazy import HashFileDB, Repo
from dagster_mlops.dvc.store.contents import Content, cache_of
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials
from dagster_mlops.provenance.credentials import remember_credentials

_T = TypeVar("_T")

_PAUSES = (0.5, 1.5, 4.0)  # seconds before the second, third and fourth attempt
_PATIENCE = 120.0  # seconds after which no further attempt starts
READ_TIMEOUT = 20  # seconds that a remote may be silent: each request to S3 is tried 25 times below us
# The options that limit this by type of remote; http and webdav have limits by default.
WAITS = {
    "s3": ("read_timeout", "connect_timeout"),
    "azure": ("read_timeout", "connection_timeout"),
    "ssh": ("timeout",),
}
# Options whose values from the environment are no secrets.
_PLACES = r"url|host|port$|region|profile|user|name|path|file|version|timeout|ssl|container|bucket|type|tenant|project"
_REMOTES = "https://dvc.org/doc/user-guide/data-management/remote-storage"
REMEDIES = (
    Advice("Run: pip install {0}.", pattern=r"requires '(dvc-\w+)' to be installed"),
    Advice("Run: pip install 'dvc[{error.protocol}]'.", types="RemoteMissingDepsError", link=_REMOTES),
    Advice(
        "The remote refuses the credentials: check those in remote_config (access_key_id, secret_access_key, profile "
        "…) or the environment, and what they may do there.",
        types="PermissionError AuthError NoCredentialsError PartialCredentialsError ProfileNotFound "
        "TokenRetrievalError",
    ),
    Advice(
        "There is no such bucket or folder: create it, or correct remote_url.",
        types="FileNotFoundError NotADirectoryError FileExistsError",
    ),
    Advice("There is no space left to write to: free some, or raise the quota.", types="ENOSPC EDQUOT EROFS EFBIG"),
    Advice("Correct the remote's options.", types="ConfigError", link=_REMOTES),
)
"""Remedies for failures of a remote that no retry fixes."""


def in_memory(options: Mapping[str, Any]) -> dict[str, Any]:
    """Remote options with the values of environment variables in place of ``EnvVar`` and ``{"env": NAME}``.

    Raises:
        DatasetError: a variable is not set.
    """
    values = {}
    for option, value in options.items():
        # Dagster turns an EnvVar in a dictionary into the second form, and leaves that as it is.
        name = value.env_var_name if isinstance(value, dg.EnvVar) else isinstance(value, Mapping) and value.get("env")
        if name and name not in os.environ:
            raise DatasetError(f"The remote's option {option} comes from the environment variable {name}: set it.")
        values[option] = os.environ[name] if name else value
        if name and not re.search(_PLACES, option):
            secrets.remember([os.environ[name]])
    remember_credentials(values)
    return values


def log_as_python_does() -> None:
    """Send DVC's log lines where the process's other ones go, which Dagster can be configured to capture.

    By itself DVC prints them to the streams that the process had when DVC was imported. Once such a stream is closed,
    as a test runner does, a log line makes the operation fail.
    """
    handler_type = extra("dvc.logger").LoggerHandler
    for name in ("dvc", "dvc_objects", "dvc_data"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler for handler in logger.handlers if not isinstance(handler, handler_type)]


def bound_waits(repo: Repo) -> None:
    """Make a remote that accepts connections but stays silent fail within minutes, unless its options set a limit.

    To be called again after the repository's lock was taken or released: DVC then reads its configuration anew.
    """
    for options in repo.config["remote"].values():
        for option in WAITS.get(str(options.get("url", "")).partition("://")[0], ()):
            options.setdefault(option, READ_TIMEOUT)


def attempt(action: Callable[[], _T], problem: str, fix: Callable[[str], str]) -> _T:
    """The result of `action`, repeated with growing pauses while it fails for a reason that no remedy is for.

    Raises:
        DatasetError: It failed: the `problem`, the reason, and the `fix` that is made of the remedy, if there is one.
    """
    try:
        return retry(action, is_transient=_may_pass, timeout=_PATIENCE, pauses=_PAUSES)
    except Exception as error:  # any of a dozen storage libraries
        reason = mask_credentials(str(error) or type(error).__name__).rstrip(".") + "."
        raise DatasetError(f"{problem}: {reason} {fix(advice(error, REMEDIES))}") from error


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, DatasetError) and not advice(error, REMEDIES)


def transfer(repo: Repo, source: HashFileDB, target: HashFileDB, content: Content, *, shallow: bool) -> None:
    """Copy the objects that `target` lacks. DVC only logs why an object fails; this raises it."""
    with raised():
        cache = cache_of(repo, content.algorithm)
        failed = repo.cloud.transfer(source, target, [content.info], cache_odb=cache, shallow=shallow).failed
    if failed:
        raise OSError(f"{len(failed)} objects failed")


@contextmanager
def raised() -> Iterator[None]:
    """Raise the first failure of a transfer in the body, which DVC only logs: on a full disk, it stores a part."""
    failures: list[BaseException] = []
    thread = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != thread or not record.exc_info or not record.exc_info[1]:
            return True
        failures.append(record.exc_info[1])
        return False  # raised instead; a traceback for each of a thousand objects helps no one

    # DVC's transfer logs its failures there, in the thread that called it.
    logger = logging.getLogger("dvc_data.hashfile.transfer")
    logger.addFilter(collect)
    try:
        yield
    finally:
        logger.removeFilter(collect)
    if failures:
        raise failures[0]
