"""An asset of predictions with the labels that have arrived for them, read from a prediction log."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.metadata import ROW_COUNT, table
from dagster_mlops.core.options import asset_with
from dagster_mlops.errors import MonitoringError, PredictionError
from dagster_mlops.serving.partitions import scored_partition

if TYPE_CHECKING:
    import pandas as pd


def feedback_asset(
    *,
    name: str = "feedback",
    prediction_log: str | Path,
    labels: AssetLike | dg.AssetIn,
    label: str,
    time: str,
    key: str = "request_id",
    within: timedelta | None = None,
    take: Literal["first", "last"] = "last",
    deployment: str | None = None,
    columns: Sequence[str] | None = None,
    keep: timedelta | None = None,
    state_dir: str | Path | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset with the predictions of a log, and the label of each as far as it has arrived.

        feedback = feedback_asset(
            prediction_log="state/serving/predictions", labels="arrivals", label="late", time="landed_at",
            key="flight_id", within=timedelta(days=2),
        )

    A row is a prediction as :meth:`PredictionLog.read` gives it, with the columns `label` and `time` of
    :func:`join_labels`. The same log and labels give the same rows, however often and wherever a run was killed.

    Without partitions, a run reads what was logged since the last one, by a cursor that it keeps in `state_dir`
    together with the predictions: those that have no label yet get it in a later run. With time partitions, a partition
    has the predictions of its time window, and nothing is kept.

    Args:
        prediction_log: Folder of the log.
        labels: An asset that its IO manager loads as a dataframe with the columns `key`, `label` and `time`. Labels of
            later partitions need ``dg.AssetIn(…, partition_mapping=…)``.
        label: Column of the labels.
        time: Column of the times at which they became known, with a time zone.
        key: Column that both have: ``request_id``, or a feature that is the key of an entity.
        within: Longest time from a prediction to its label.
        take: The label that counts where several do.
        deployment: Name of the one deployment or batch whose predictions are taken.
        columns: Features that the asset has; all unless given.
        keep: Time for which a prediction stays in an asset without partitions; forever unless given.
        state_dir: Folder of cursor and predictions; ``feedback/<asset>`` beside the log unless given.
        asset_options: Anything else that :func:`dagster.asset` takes, such as ``partitions_def`` and ``deps``.
    """
    labels_key, partitions_def = asset_key(labels), asset_options.get("partitions_def")
    windows = isinstance(partitions_def, dg.TimeWindowPartitionsDefinition)
    faults = {
        f"take={take!r} is not 'first' or 'last'": take not in ("first", "last"),
        "partitions_def= has no time windows": partitions_def is not None and not windows,
        "keep= and state_dir= are for an asset without partitions": windows and bool(keep or state_dir),
        f"within={within} is not above 0": within is not None and within <= timedelta(0),
        f"keep={keep} is not above 0": keep is not None and keep <= timedelta(0),
    }
    refuse_useless(f"feedback_asset {name!r}", faults)

    @not_retried(PredictionError, MonitoringError)
    def feedback(context: dg.AssetExecutionContext, labels: Any) -> dg.MaterializeResult:
        # For steps, not for code locations.
        from dagster_mlops.core.extras import extra
        from dagster_mlops.core.table_hash import content_hash
        from dagster_mlops.core.tables import as_frame
        from dagster_mlops.serving.feedback.labels import join_labels
        from dagster_mlops.serving.feedback.logged_rows import LoggedRows, losses_in
        from dagster_mlops.serving.runtime import PredictionLog

        for module in ("orjson", "pyarrow"):
            extra(module)
        folder = Path(prediction_log).expanduser().resolve()
        names = None if columns is None else [*dict.fromkeys((*_FACTS, key, *columns, "output"))]
        start = end = None
        if windows:
            scored_partition(context)
            start, end = context.partition_time_window
            options: dict[str, Any] = {"deployment": deployment, "columns": names}
            frame, count = PredictionLog.read(folder, start, end, **options), None
        else:
            place = Path(state_dir).expanduser().resolve() if state_dir else _default_state(folder, context)
            rows = LoggedRows(folder, place, deployment=deployment, columns=names, keep=keep)
            frame, count = rows.read()
        if frame.empty and key not in frame:
            frame = frame.assign(**{key: None})
        as_of = datetime.now(UTC)
        events = as_frame(labels, tool="bentoml", error=MonitoringError)
        joined = join_labels(frame, events, label=label, time=time, key=key, as_of=as_of, within=within, take=take)
        facts = {
            **_numbers(joined, label, time, within, as_of),
            **({} if count is None else {"new_predictions": count}),
            "lost_predictions": sum(entry["rows"] for entry in losses_in(folder, start, end, deployment)),
        }
        return dg.MaterializeResult(
            value=joined,
            data_version=dg.DataVersion(content_hash(joined, tool="bentoml")),
            metadata={
                ROW_COUNT: len(joined),
                **{f"serving/{fact}": value for fact, value in facts.items() if value is not None},
                **table("serving/labels_by_version", _by_version(joined, label)),
            },
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Predictions, with the labels of {labels_key.to_user_string()} that have arrived for them.",
        dagster_type=dg.Any,  # its IO manager decides what can be stored
        ins={"labels": asset_input(labels)},
    )(feedback)


_FACTS = ("request_id", "timestamp", "deployment", "model_name", "model_version")


def _default_state(log: Path, context: dg.AssetExecutionContext) -> Path:
    return log.parent / "feedback" / context.assets_def.key.to_user_string().replace("/", "__")


def _numbers(
    joined: "pd.DataFrame", label: str, time: str, within: timedelta | None, as_of: datetime
) -> dict[str, int | float | None]:
    """Numbers of labels, and the delays from the prediction to the label, in seconds."""
    labelled = joined[label].notna()
    late = joined["timestamp"] + within <= as_of if within and len(joined) else labelled & False
    rows: Any = joined[labelled]
    delays: Any = (rows[time] - rows["timestamp"]).dt.total_seconds() if len(rows) else []
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "labelled": int(labelled.sum()),
        "labelled_share": float(labelled.mean()) if len(joined) else None,
        "awaited": int((~labelled & ~late).sum()),
        "never_labelled": int((~labelled & late).sum()),  # too late for any label that may still arrive
        **{f"delay_{name}": float(delays.quantile(q)) for name, q in quantiles.items() if len(delays)},
    }


def _by_version(joined: "pd.DataFrame", label: str) -> list[dict[str, Any]]:
    groups: Any = joined.groupby(["model_name", "model_version"], dropna=False)
    return [
        {"model": f"{model}/{version}", "predictions": len(rows), "labelled": int(rows[label].notna().sum())}
        for (model, version), rows in groups
    ]
