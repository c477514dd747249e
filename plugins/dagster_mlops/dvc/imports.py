"""Datasets imported from other repositories, each locked to the commit that it came from."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.asset_records import dagster_facts
from dagster_mlops.code_state import git
from dagster_mlops.dvc import frames, versions
from dagster_mlops.dvc.diff import change
from dagster_mlops.dvc.io_manager import PATH, dvc_io_manager
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Ref, mask_credentials

_COMMIT = re.compile(r"[0-9a-f]{40}")


def imported_dataset_asset(
    *,
    path: str,
    url: str,
    source_path: str | None = None,
    rev: str = "HEAD",
    metadata: Mapping[str, Any] | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """A dataset or file of another git repository as an asset. Bind a :class:`DvcResource` as ``dvc``.

        imported_dataset_asset(
            key="vendor/prices", path="vendor/prices.parquet", url="https://git.example.com/vendor", rev="main"
        )

    Each run takes what `rev` names then, and stores it with a pointer as ``dvc import`` writes it, locked to the commit
    it came from: ``dvc update`` and ``dvc status`` understand it. The content is downloaded beside the dataset first,
    so a source that fails leaves everything as it was. Downstream assets take the data as an argument.

    Args:
        path: where the dataset goes in the repository of ``dvc``.
        url: a git URL, or the folder of a git repository, that DVC or git itself versions the data in.
        source_path: where the dataset lies there; the same as `path` by default.
        rev: branch, tag or full commit hash.
        metadata: further definition metadata.
        asset_options: whatever ``dg.asset`` takes, such as ``key``, ``group_name`` or ``automation_condition``; without
            ``key`` or ``name``, the key is `path` without its suffix.

    Raises:
        DatasetError: `url` has a password; in a run: the source cannot be reached, or has no such revision or path.
    """
    source_path = source_path or path
    if not {"key", "name"} & set(asset_options):
        asset_options["key"] = [re.sub(r"[^A-Za-z0-9_]", "_", part) for part in path.rsplit(".", 1)[0].split("/")]
    if url != (shown := mask_credentials(url)):
        raise DatasetError(
            f"{shown} has a password in it, which the pointer would carry into git. Leave it out, and tell git: "
            "`git config credential.helper`, or a URL with ssh."
        )

    @dg.asset(
        io_manager_def=dvc_io_manager,
        required_resource_keys={"dvc"},
        metadata={PATH: path, "dvc/source": shown, **(metadata or {})},
        kinds=asset_options.pop("kinds", {"dvc"}),
        description=asset_options.pop("description", f"{source_path} of {shown} at {rev}."),
        **asset_options,
    )
    def imported(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        dvc: DvcResource = context.resources.dvc
        commit = _commit(url, rev)
        with dvc.open(locked=False) as repo:
            scratch = versions.scratch(repo)
        try:
            source = extra("dvc.fs").DVCFileSystem(repo=url, rev=commit, subrepos=True)
            source.get(source_path, str(scratch), recursive=source.isdir(source_path))
        except Exception as error:  # git, DVC, or any of a dozen storage libraries
            raise DatasetError(
                f"{source_path} of {shown} at {commit} cannot be imported: "
                f"{mask_credentials(str(error) or repr(error))} Look at `dvc list {shown} --rev {rev}`, and whether "
                f"its remote is reachable. {path} is as it was."
            ) from error
        rows, columns = frames.described(scratch, path)
        record = dvc.store(
            path,
            source=scratch,
            imported_from={"path": source_path, "repo": {"url": url, "rev": rev, "rev_lock": commit}},
            rows=rows,
            upstream=(Ref("git", "commit", commit, at=shown),),
            **dagster_facts(context),
        )
        facts = {**record.to_metadata(), **change(dvc, context.instance, context.asset_key, record, columns)}
        if rows is not None and columns is not None:
            facts.update({"dagster/row_count": rows, "dagster/column_schema": columns})
        return dg.MaterializeResult(
            data_version=dg.DataVersion(record.md5), metadata={**facts, "dvc/source_commit": commit}
        )

    return imported  # pyright: ignore[reportReturnType] (a spread-out option hides from it that dg.asset has decorated)


def _commit(url: str, rev: str) -> str:
    """The commit that a revision of a repository names now."""
    if _COMMIT.fullmatch(rev):
        return rev
    # Annotated tags name the commit they stand for with ^{}.
    listed = git(Path.cwd(), "ls-remote", url, rev, f"refs/heads/{rev}", f"refs/tags/{rev}", f"refs/tags/{rev}^{{}}")
    if listed.returncode:
        raise DatasetError(
            f"The source {mask_credentials(url)} cannot be reached: "
            f"{mask_credentials(listed.stderr.decode().strip())} Try `git ls-remote` with it on this machine."
        )
    lines = [line.split("\t") for line in listed.stdout.decode().splitlines()]
    found = {name: commit for commit, name in lines}
    for name in (f"refs/heads/{rev}", f"refs/tags/{rev}^{{}}", f"refs/tags/{rev}", rev):
        if name in found:
            return found[name]
    raise DatasetError(
        f"{mask_credentials(url)} has no branch or tag {rev!r}. Name one of those that `git ls-remote` lists, or a "
        "full commit hash."
    )
