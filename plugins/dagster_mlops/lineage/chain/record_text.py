"""What is worth reading about each kind of record, in a few words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dagster_mlops.provenance import (
    Bento,
    CodeCommit,
    Dataset,
    Deployment,
    DriftReport,
    FeatureView,
    ModelVersion,
    Prediction,
    Record,
    TrainingRun,
    TrainingSet,
)

_MOST = 6


def facts(record: Record) -> list[str]:
    """The facts of a record that a reader looks for, most telling first; empty ones are left out."""
    match record:
        case Prediction():
            found = [record.timestamp, f"output {_short(record.output)}", _pairs(record.inputs)]
        case Deployment():
            golden = ""
            if record.golden_rows is not None:
                golden = f"golden set {record.golden_rows:,} rows, largest difference {record.golden_max_difference}"
            share = "" if record.traffic == 1 else f"{record.traffic:.0%} of the traffic"
            stopped = record.stopped and f"stopped {record.stopped}"
            found = [record.url, share, record.started and f"since {record.started}", stopped, golden]
        case Bento():
            found = [f"model {record.model_name}/{record.model_version}"]
        case ModelVersion():
            alias = record.aliases and "alias " + ", ".join(record.aliases)
            found = [alias, _pairs(record.metrics), record.run_id and f"run {record.run_id[:12]}"]
        case TrainingRun():
            code = record.code_commit and f"code {record.code_commit[:10]}{' + uncommitted' if record.dirty else ''}"
            seed = "" if record.seed is None else f"seed {record.seed}"
            found = [_pairs(record.metrics), code, seed, record.python and f"python {record.python}"]
        case TrainingSet():
            found = [_rows(record.rows), _window(record.start, record.end), f"registry {record.registry_hash[:12]}"]
        case FeatureView():
            found = [_rows(record.rows), _window(record.start, record.end)]
        case Dataset():
            size = "" if record.bytes is None else _size(record.bytes)
            rev = record.rev and f"rev {record.rev[:10]}"
            found = [_rows(record.rows), size, f"md5 {record.md5[:12]}", rev]
        case CodeCommit():
            found = [record.subject, record.author, record.authored]
        case DriftReport():
            share = "" if record.drift_share is None else f"drift share {record.drift_share:.2f}"
            columns = record.drifted and "drifted: " + ", ".join(record.drifted)
            verdict = {True: "passed", False: "FAILED", None: ""}[record.passed]
            rows = record.current_rows and f"{record.current_rows:,} rows against {record.reference_rows or 0:,}"
            found = [verdict, share, columns, rows, record.report]
        case _:
            plain = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
            hidden = {"upstream", "dagster_run_id", "dagster_asset", "dagster_partition"}
            found = [_pairs({k: v for k, v in plain.items() if v not in ("", None, (), {}) and k not in hidden})]
    return [text for text in found if text]


def title(record: Record | None, ref_id: str) -> str:
    """The name of a thing as a reader knows it: without the hash that only machines need."""
    match record:
        case Dataset():
            return record.path
        case CodeCommit():
            return record.sha[:10]
        case TrainingSet():
            return f"{record.project}/{record.feature_service}"
    return ref_id


def made_by(record: Record) -> str:
    """The Dagster asset, partition and run that made it."""
    if not record.dagster_asset:
        return ""
    partition = f" [{record.dagster_partition}]" if record.dagster_partition else ""
    run = f" in run {record.dagster_run_id[:8]}" if record.dagster_run_id else ""
    return f"asset {record.dagster_asset}{partition}{run}"


def _rows(rows: int | None) -> str:
    return "" if rows is None else f"{rows:,} rows"


def _window(start: str, end: str) -> str:
    return f"{start[:16] or '…'} to {end[:16] or '…'}" if start or end else ""


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _pairs(values: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={_short(value)}" for name, value in list(values.items())[:_MOST])
    return shown + (f", and {len(values) - _MOST} more" if len(values) > _MOST else "")


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
