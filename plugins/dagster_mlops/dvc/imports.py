"""Datasets imported from other repositories and from URLs, each locked to the version that it came from."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import dagster_facts
from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.environment import whole_environment
from dagster_mlops.core.resources import note_credentials
from dagster_mlops.core.site_cache import site_cache_variables
from dagster_mlops.dvc.assets import key_parts, observed_dataset, stored_asset
from dagster_mlops.dvc.history.comparison import stored_metadata
from dagster_mlops.dvc.io_manager import PATH_KEY
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats, pointers, remotes
from dagster_mlops.dvc.store.git_commit import run
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Ref, mask_credentials

SOURCE, CHANGED = "dvc/source", "dvc/source_changed"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a run: the dependency as DVC writes it (None if the dataset is up to date), upstream refs, metadata.
_Import = tuple[Mapping[str, Any] | None, tuple[Ref, ...], Mapping[str, Any]]


def imported_dataset_asset(
    *,
    path: str,
    url: str,
    source_path: str | None = None,
    rev: str = "HEAD",
    timeout: float = 3600.0,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """A dataset or file of another git repository as an asset. Bind a :class:`DvcResource` as ``dvc``.

        imported_dataset_asset(
            key="vendor/prices", path="vendor/prices.parquet", url="https://git.example.com/vendor", rev="main"
        )

    Each run takes the current commit of `rev`, and stores the data with a pointer as ``dvc import`` writes it, locked
    to that commit: ``dvc update`` and ``dvc status`` understand it. The content is downloaded beside the dataset first,
    so a source that fails changes nothing. Downstream assets take the data as an argument.

    Args:
        path: Path of the dataset in the repository of ``dvc``.
        url: URL or folder of a git repository in which DVC or git itself versions the data.
        source_path: Path of the dataset there; the same as `path` by default.
        rev: Branch, tag or full commit hash.
        timeout: Seconds that the download may take.
        asset_options: Whatever else ``dg.asset`` takes, such as ``key``, ``group_name`` or ``automation_condition``;
            without ``key`` or ``name``, the key is `path` without its suffix.

    Raises:
        DatasetError: `url` has a password; in a run: the source cannot be reached, does not answer in time, or has no
            such revision or path.
    """
    source_path = source_path or path

    def take(dvc: DvcResource, scratch: Path) -> _Import:
        commit = _commit(url, rev)
        request = {"url": url, "commit": commit, "path": source_path, "target": str(scratch)}
        _downloaded(dvc, request, f"{source_path} of {url} at {commit}", path, timeout)
        lock = {"path": source_path, "repo": {"url": url, "rev": rev, "rev_lock": commit}}
        return lock, (Ref("git", "commit", commit, at=url),), {"dvc/source_commit": commit}

    return _imported(path, url, take, f"{source_path} of {url} at {rev}.", asset_options)


def imported_url_asset(
    *,
    path: str,
    url: str,
    options: Mapping[str, Any] | None = None,
    timeout: float = 3600.0,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """A file or folder at a URL as an asset. Bind a :class:`DvcResource` as ``dvc``.

        imported_url_asset(
            path="raw/zones.csv", url="s3://open-data/zones.csv", options={"profile": "readonly"}
        )

    A run asks the source for its version (an ETag, or the MD5 of a local file). If the pointer has the same, nothing is
    downloaded and the dataset keeps its version. Another version is downloaded beside the dataset, and stored with a
    pointer as ``dvc import-url`` writes it. A source that fails changes nothing.

    Args:
        path: Path of the dataset in the repository of ``dvc``.
        url: URL as for ``dvc import-url``: ``https://…``, ``s3://…``, ``remote://<DVC remote>/…``, a local path.
        options: Options of the storage, as DVC names them for a remote of that type (endpointurl, profile, …); secrets
            as ``EnvVar``. They stay in memory.
        timeout: Seconds that the download may take.
        asset_options: The same as for :func:`imported_dataset_asset`.

    Raises:
        DatasetError: `url` has a password; in a run: the source cannot be reached, does not answer in time, does
            not exist, or has no version.
    """

    note_credentials("imported_url_asset", "options", options)

    def take(dvc: DvcResource, scratch: Path) -> _Import:
        target = dvc.locate(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        [dependency] = (pointers.read_pointer(target) or {}).get("deps") or [None]
        try:
            dvc.read_path(path)
        except DatasetError:
            dependency = None  # not stored yet, or not available
        request = {
            "repo": str(dvc.root),
            "config": dvc.config(),
            "dataset": str(target),
            "url": url,
            "options": remotes.in_memory(options or {}),
            "known": dependency,
            "target": str(scratch),
        }
        answer = _downloaded(dvc, request, url, path, timeout)
        source = answer["dependency"]
        version = next(str(source[name]) for name in ("etag", "md5", "checksum", "version_id") if name in source)
        return source if answer["changed"] else None, (), {"dvc/source_version": version}

    return _imported(path, url, take, f"The content of {url}.", asset_options)


def _imported(
    path: str, url: str, take: Callable[[DvcResource, Path], _Import], description: str, asset_options: dict[str, Any]
) -> dg.AssetsDefinition:
    """The asset that stores the content which `take` puts at a path."""
    if not {"key", "name"} & set(asset_options):
        asset_options["key"] = key_parts(path.rsplit(".", 1)[0])
    if url != (masked := mask_credentials(url)):
        raise DatasetError(
            f"{masked} has a password in it, which the pointer would carry into git. Leave it out, and tell git: "
            "`git config credential.helper`, or a URL with ssh; for a storage, use options or a DVC remote."
        )

    about = {"description": description, "metadata": {PATH_KEY: path, SOURCE: url}}

    @stored_asset(asset_options, **about, required_resource_keys=["dvc"])
    def imported(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        dvc: DvcResource = context.resources.dvc
        with dvc.open(locked=False) as repo:
            scratch = pointers.scratch(repo)
        imported_from, upstream, origin = take(dvc, scratch)
        if imported_from is None:
            record = observed_dataset(dvc, path, rev=None)
            rows, columns = file_formats.described(dvc.read_path(path), path)
        else:
            rows, columns = file_formats.described(scratch, path)
            run_facts = {**dagster_facts(context), "rows": rows, "upstream": upstream}
            record = dvc.store(path, source=scratch, imported_from=imported_from, **run_facts)
        facts = stored_metadata(dvc, context, context.asset_key, record, rows, columns)
        metadata = {**facts, **origin, CHANGED: imported_from is not None}
        return dg.MaterializeResult(data_version=dg.DataVersion(record.md5), metadata=metadata)

    return imported  # pyright: ignore[reportReturnType] (a spread-out option hides from it that dg.asset has decorated)


def _downloaded(dvc: DvcResource, request: Mapping[str, Any], source: str, path: str, timeout: float) -> dict[str, Any]:
    """The answer of the process that downloads."""
    script = Path(__file__).with_name("_download_script.py")
    try:
        # Its git asks the user's credential helpers, which may read any variable.
        variables = {**whole_environment(), **site_cache_variables(dvc.root), "DVC_NO_ANALYTICS": "1"}
        answer = run_child(script, request, cwd=dvc.root, env=variables, timeout=timeout)
    except ChildError as failure:
        slow = f"it did not answer to the end within {timeout:g} s. Raise timeout= if it is only slow."
        answer = {"error": slow if failure.returncode is None else failure.reason}
    if "error" in answer:
        raise DatasetError(
            f"{source} cannot be imported: {mask_credentials(answer['error'])} Check that this machine reaches the "
            f"source and its remote (`dvc list`, `dvc get`). {path} did not change."
        )
    return answer


def _commit(url: str, rev: str) -> str:
    """The current commit of a revision of a repository."""
    if _COMMIT.fullmatch(rev):
        return rev
    # The commit of an annotated tag is listed as <tag>^{}.
    names = (f"refs/heads/{rev}", f"refs/tags/{rev}^{{}}", f"refs/tags/{rev}", rev)
    source, hint = mask_credentials(url), "Try `git ls-remote` with it on this machine."
    listing = run(
        Path.cwd(), "ls-remote", "--", url, *names, problem=f"The source {source} cannot be reached", hint=hint
    )
    commits = {name: commit for commit, name in (line.split("\t") for line in listing.decode().splitlines())}
    if matches := [commits[name] for name in names if name in commits]:
        return matches[0]
    raise DatasetError(
        f"{source} has no branch or tag {rev!r}. Name one of those that `git ls-remote` lists, or a full commit hash."
    )
