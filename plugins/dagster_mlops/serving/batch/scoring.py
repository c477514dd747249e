"""Scores the rows of a batch in chunks, by the code that answers requests, and appends them to a prediction log."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core import row_values
from dagster_mlops.core.arrays import pd
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_versions import version_of
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_frame
from dagster_mlops.errors import PredictionError
from dagster_mlops.evaluation.predictions import load_version
from dagster_mlops.provenance import Dataset, ModelVersion, PredictionBatch, Record, Ref
from dagster_mlops.serving.batch.log import batch_log
from dagster_mlops.serving.runtime import LogRules
from dagster_mlops.serving.runtime.outputs import OutputError, plain, records_of
from dagster_mlops.serving.runtime.schema import Features
from dagster_mlops.serving.runtime.scorer import Scorer
from dagster_mlops.tools import HoldsModels

_LONGEST_ID = 200
_SAFE = "/:=+,-._~"  # in ids, beside letters and digits


@dataclass(frozen=True)
class Batch:
    """Rows to score, and the record of their predictions."""

    record: PredictionBatch
    version: ModelVersion
    frame: "pd.DataFrame"
    key: Sequence[str]
    columns: Sequence[str]
    log_rules: LogRules

    @classmethod
    def of(
        cls,
        rows: Any,
        *,
        facts: Mapping[str, Any],
        partition: str,
        version: ModelVersion,
        upstream: tuple[Ref, ...],
        datasets: Sequence[Record],
        key: Sequence[str],
        columns: Sequence[str],
        log_dir: str,
        log_rules: LogRules | None,
    ) -> "Batch":
        """The batch of a table.

        Raises:
            PredictionError: the value is not a table, or `key` does not name each of its rows.
        """
        for module in ("msgspec", "orjson", "duckdb"):
            extra(module)
        frame = as_frame(rows, tool="bentoml", error=PredictionError).reset_index(drop=True)
        if missing := [name for name in (*key, *columns) if name not in frame.columns]:
            names = ", ".join(map(str, frame.columns[:30]))
            raise PredictionError(f"the rows have no column {', '.join(map(repr, missing))}, but {names}.")
        if key and (unclear := int((frame.duplicated(list(key)) | frame[list(key)].isna().any(axis=1)).sum())):
            raise PredictionError(
                f"{unclear} of {len(frame)} rows have no {', '.join(key)} of their own, and so no request id. Name "
                "columns in key= whose values occur once in a partition, and are not missing."
            )
        rows_hash = content_hash(frame, tool="bentoml")
        digest = hashlib.sha256("\n".join([str(version.ref), version.run_id, version.sha256, rows_hash]).encode())
        name = quote("/".join(filter(None, (facts["dagster_asset"], partition))), safe=_SAFE)
        record = PredictionBatch(
            name=name,
            digest=digest.hexdigest(),
            model_name=version.name,
            model_version=version.version,
            sha256=version.sha256,
            rows=len(frame),
            datasets={record.path: record.md5 for record in datasets if isinstance(record, Dataset)}
            or {"rows": rows_hash},
            prediction_log=log_dir,
            upstream=upstream,
            **facts,
        )
        return cls(record, version, frame, key, columns, log_rules or LogRules())


@dataclass
class Result:
    """Predictions of a batch as a dataframe, and numbers about them."""

    frame: "pd.DataFrame"
    metadata: dict[str, Any] = field(default_factory=dict)


def score(context: dg.AssetExecutionContext, models: HoldsModels, batch: Batch, chunk_rows: int) -> Result:
    """Score a batch by its model version.

    Raises:
        ModelVersionError: the registry does not have the version any more, or it cannot be loaded.
        PredictionError: a row does not fit the model's signature, or the model refuses it.
        OSError: the disk of the prediction log refuses a row.
    """
    record = batch.record
    version_of(models, batch.version)
    scorer = _scorer(load_version(context, models, batch.version).model, record)
    if missing := _missing(scorer.features, batch.frame):
        raise PredictionError(f"the rows lack feature(s) {', '.join(missing)} of {_model(record)}.")
    request_ids: list[str] = []
    predictions: list[Any] = []
    with batch_log(record, batch.log_rules) as log:
        for ids, inputs, values in _chunks(batch, scorer.features, chunk_rows):
            outputs = _outputs(scorer, values, record)
            log.append(ids, inputs, outputs)
            request_ids += ids
            predictions += outputs
    frame = batch.frame[list(batch.columns)]
    frame.insert(0, "request_id", pd.Series(request_ids, dtype=object))
    frame = frame.assign(
        prediction=pd.Series(predictions, dtype=None if predictions else float),
        model_name=record.model_name,
        model_version=record.model_version,
    )
    counts = {"rows_logged": log.appended, "rows_logged_before": log.before} if record.prediction_log else {}
    return Result(frame, {f"serving/{name}": value for name, value in counts.items()})


def _scorer(model: Any, record: PredictionBatch) -> Scorer:
    try:
        return Scorer(model)
    except ValueError as error:
        raise PredictionError(f"{_model(record)} cannot score rows: {error}") from error


def _chunks(
    batch: Batch, features: Features, size: int
) -> Iterator[tuple[list[str], list[dict[str, Any]], list[tuple[Any, ...]]]]:
    """Ids, features as they are logged, and values as the model takes them, chunk by chunk."""
    names = [name for name in features.names if name in batch.frame.columns]
    repeats: Counter[str] = Counter()
    for start in range(0, len(batch.frame), size):
        chunk = batch.frame.iloc[start : start + size]
        try:
            inputs = records_of(chunk[names])
            values = features.checked(inputs)
        except (ValueError, OutputError) as error:
            raise PredictionError(f"rows from number {start} on do not fit {_model(batch.record)}: {error}") from None
        yield _ids(batch, chunk, inputs, repeats), inputs, values


def _ids(batch: Batch, chunk: "pd.DataFrame", inputs: Sequence[Any], repeats: Counter[str]) -> list[str]:
    if batch.key:
        rows = zip(*(chunk[name].tolist() for name in batch.key), strict=True)
        ends = [",".join(quote(str(plain(value)), safe="") for value in row) for row in rows]
    else:
        msgspec = extra("msgspec")
        ends = []
        for row in inputs:
            end = hashlib.sha256(msgspec.json.encode(row)).hexdigest()[:24]
            # Equal rows have equal predictions, so that it does not matter which one is counted first.
            ends.append(f"{end}-{repeats[end]}" if repeats[end] else end)
            repeats[end] += 1
    ids = [f"{batch.record.name}/{end}" for end in ends]
    return [id if len(id) <= _LONGEST_ID else _shortened(batch.record.name, id) for id in ids]


def _shortened(name: str, id: str) -> str:
    digest = hashlib.sha256(id.encode()).hexdigest()
    return f"{name}/{digest[:40]}" if len(name) < _LONGEST_ID - 41 else digest


def _outputs(scorer: Scorer, values: Sequence[tuple[Any, ...]], record: PredictionBatch) -> list[Any]:
    try:
        return scorer.score(values)
    except OutputError as error:
        raise PredictionError(f"{_model(record)}: {error}") from error
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        raise PredictionError(f"{_model(record)} refuses rows: {row_values.refusal(error)}") from row_values.cause(
            error
        )


def _missing(features: Features, frame: "pd.DataFrame") -> list[str]:
    return [name for name in features.names if name not in frame.columns and name not in features.optional]


def _model(record: PredictionBatch) -> str:
    return f"version {record.model_version} of {record.model_name!r}"
