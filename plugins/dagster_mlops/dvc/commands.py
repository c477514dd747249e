"""`dagster-mlops dvc`: list the versions of a dataset, compare two of them, restore one."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dagster_mlops.core.commands import errors_shown
from dagster_mlops.core.terminal import line

app = typer.Typer(help="Versions of DVC datasets.", no_args_is_help=True)
_Path = Annotated[str, typer.Argument(help="Path of the dataset, relative to the repository.")]
_Repo = Annotated[str, typer.Option(help="Folder of the DVC repository.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def versions(
    path: _Path,
    repo: _Repo = ".",
    rev: Annotated[str, typer.Option(help="Git revision whose history is listed.")] = "HEAD",
    limit: Annotated[int, typer.Option(help="Largest number of versions.")] = 20,
    as_json: _Json = False,
) -> None:
    """List the versions of a dataset up to a git revision, newest first."""
    from dagster_mlops.dvc.history.versions import history
    from dagster_mlops.dvc.resource import DvcResource

    with errors_shown():
        dataset_versions = history(DvcResource(repo=repo), path, rev=rev, limit=limit)
    facts = {"md5": "md5", "rows": "rows", "bytes": "bytes", "commit": "rev", "dagster_run": "dagster_run_id"}
    rows = []
    for version in dataset_versions:
        row = {name: getattr(version.dataset, fact) for name, fact in facts.items()}
        rows.append({"committed": version.committed.isoformat(), **row})
    typer.echo(json.dumps(rows, indent=2) if as_json else _table(rows))


@app.command()
def diff(
    path: _Path,
    old: Annotated[
        str, typer.Argument(help="Older version: a git revision, a content hash, or 'previous'.")
    ] = "previous",
    new: Annotated[str | None, typer.Argument(help="Newer version; default: the current one.")] = None,
    repo: _Repo = ".",
    as_json: _Json = False,
) -> None:
    """Show what differs between two versions: rows, bytes, columns, and values of a JSON or YAML file."""
    from dagster_mlops.dvc.history.comparison import diff as compare
    from dagster_mlops.dvc.resource import DvcResource

    with errors_shown():
        difference = compare(DvcResource(repo=repo), path, old, new)
    before, after, columns, values = difference.old, difference.new, difference.columns, difference.values
    deltas = {"rows": difference.rows_delta, "bytes": difference.bytes_delta}
    if as_json:
        facts = {"old": before.md5, "new": after.md5, **deltas, "columns": columns, "values": values}
        typer.echo(json.dumps(facts, indent=2))
        return
    facts = [
        {"": name, "old": getattr(before, name), "new": getattr(after, name), "delta": deltas.get(name)}
        for name in ("md5", "rows", "bytes")
    ]
    typer.echo("\n\n".join(_table(rows) for rows in (facts, columns, values) if rows))


@app.command()
def restore(
    path: _Path,
    repo: _Repo = ".",
    rev: Annotated[
        str | None, typer.Option(help="Git branch, tag or commit of the version; default: the previous version.")
    ] = None,
    md5: Annotated[str | None, typer.Option(help="Content hash of the version.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite changes that were not stored.")] = False,
    push: Annotated[bool, typer.Option(help="Push missing content to the DVC remote.")] = True,
) -> None:
    """Bring an older version of a dataset back as the newest one."""
    from dagster_mlops.dvc.history.versions import restore as restore_version
    from dagster_mlops.dvc.resource import DvcResource

    if rev and md5:
        raise typer.BadParameter("name a version by --rev or by --md5, not by both")
    dvc = DvcResource(repo=repo, push=push)
    with errors_shown():
        record = restore_version(dvc, path, rev or md5 or "previous", force=force)
        locked_hash = dvc.data_version(path)
    typer.echo(line(f"{record.path} is {record.md5} again{f', in commit {record.rev}' if record.rev else ''}."))
    if locked_hash != record.md5:
        text = f"dvc.lock says {locked_hash}: `dvc repro` rebuilds that version, `dvc commit` accepts the restored one."
        typer.echo(line(text))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns, each as wide as its longest text: hashes are there to be copied, so nothing is cut off."""
    header = list(rows[0]) if rows else []
    cells = [header, *([line(str("" if value is None else value)) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
