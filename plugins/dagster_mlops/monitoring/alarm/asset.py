"""An asset that calibrates an alarm by the history of what a model saw and predicted."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.argument_types import Names, refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import upstream_records
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.options import asset_with
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.alarm.outputs import bad_place
from dagster_mlops.monitoring.alarm.value import Size
from dagster_mlops.monitoring.windows.zones import is_zone
from dagster_mlops.provenance import ModelVersion, PredictionBatch


def alarm_asset(
    *,
    name: str = "alarm",
    history: AssetLike | dg.AssetIn,
    time: str,
    columns: Sequence[str] | None = None,
    categories: Names = (),
    outputs: Mapping[str, str] | None = None,
    rows: int | None = None,
    every: timedelta | None = None,
    alarms: float = 1.0,
    per: timedelta = timedelta(days=30),
    minimum_effect: float = 0.0,
    zone: str = "UTC",
    slow: timedelta | None = None,
    requests: str | Path | None = None,
    label: str | None = None,
    prediction: str | None = None,
    max_drop: float = 0.05,
    predict: Callable[[Any], Any] | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that learns what is normal from a history, and the score that so many false alarms exceed.

        alarm_asset(
            name="delay_alarm", history="scored_flights", time="time_hour", columns=[*FEATURES, "probability"],
            outputs={"probability": "output"}, rows=200,
        )

    The history is cut into windows of the same size as those of the live traffic, one after the other, since real
    traffic is never a random sample: its hours, days and weather come with it. One threshold for all columns lets
    `alarms` incidents pass in the time `per` without a change. A history that is too short for that is refused, or the
    promise is widened; both say so.

    The value is a JSON object, which the asset's IO manager stores; :func:`divergence_sensor` loads it.

    Args:
        history: An asset that its IO manager loads as a dataframe, with the columns that the prediction log has.
        time: Column of the times at which the model was asked.
        columns: Watched columns; by default all but `time`.
        categories: Columns of numbers that stand for categories.
        outputs: The predictions among the columns, each with its place in the model's answer: ``output``, or
            ``output.late`` for the key `late` of an object, or ``output.0`` for the first of a list.
        rows: Rows of a window. Give `rows` or `every`.
        every: Length of a window.
        alarms: False alarms that are accepted in the time `per`, of all columns together.
        minimum_effect: Share of the rows that have to be distributed differently. Values that are missing, malformed,
            new or far out of range always count.
        zone: Time zone of the users, such as ``Europe/Vienna``: what is usual at an hour follows their clocks.
        slow: Latency of a request from which it counts as slow. Slow, failed and refused requests are watched like the
            columns, under the same promise. In a history with a column ``seconds``, so many are usual as it has.
        requests: Folder of a prediction log whose servers have counted failed and refused requests in the time of the
            history. Without it, none of them are usual.
        label: Column of the labels in the history, true/false or 1/0, which is not watched: with it, an alarm says if
            the change is harmful, benign or undecided. So far for classification only.
        prediction: The one of `outputs` that is the probability of 1.
        max_drop: Smallest relative drop of ROC AUC or log loss that is harm.
        predict: The model, as a function of a pandas frame of the watched inputs to probabilities of 1, with which
            faults are rehearsed. A stand-in that learns its predictions from the history is asked unless given.
        asset_options: Anything else that :func:`dagster.asset` takes.
    """
    refuse_mistyped(alarm_asset, locals())
    history_key = asset_key(history)
    refuse_useless(
        f"alarm_asset {name!r}",
        {
            "give rows= or every=, the size of a window, and not both": (rows is None) == (every is None),
            f"rows={rows} is less than 20": rows is not None and rows < 20,
            f"every={every} is not from ten seconds to a year": every is not None
            and not timedelta(seconds=10) <= every <= timedelta(days=366),
            f"alarms={alarms} is not above 0": not alarms > 0,
            f"per={per} is not from a day to ten years": not timedelta(days=1) <= per <= timedelta(days=3660),
            f"alarms={alarms} per {per} are more than one a day, and those within a day are one": alarms
            > max(per / timedelta(days=1), 1),
            f"minimum_effect={minimum_effect} is not from 0 to below 1": not 0 <= minimum_effect < 1,
            "label and prediction go together: name both or neither": (label is None) != (prediction is None),
            f"prediction={prediction!r} is none of outputs": prediction is not None
            and prediction not in (outputs or {}),
            f"label={label!r} is one of the columns": label is not None and label in (columns or ()),
            f"max_drop={max_drop} is not between 0 and 1": not 0 < max_drop < 1,
            f"slow={slow} is not more than 0": slow is not None and slow <= timedelta(0),
            f"zone={zone!r} is not the name of a time zone, such as 'Europe/Vienna'": not is_zone(zone),
            "columns is empty": columns is not None and not columns,
            **{
                f"outputs: {place!r} of {column!r} is not 'output' or a part, such as 'output.late'": bad_place(place)
                for column, place in (outputs or {}).items()
            },
            **{
                f"outputs names {column!r}, which columns does not": columns is not None and column not in columns
                for column in outputs or {}
            },
            **{
                f"categories names {column!r}, which columns does not": columns is not None and column not in columns
                for column in categories
            },
            f"time={time!r} is one of the columns": columns is not None and time in columns,
        },
    )

    @not_retried(MonitoringError)
    def alarm(context: dg.AssetExecutionContext, history: Any) -> dg.MaterializeResult:
        from dagster_mlops.monitoring.alarm.calibration import calibrate  # for steps, not for code locations

        records = [record for record in upstream_records(context) if isinstance(record, ModelVersion | PredictionBatch)]
        versions = {r.version if isinstance(r, ModelVersion) else r.model_version for r in records}
        calibration = calibrate(
            history,
            name=name,
            time=time,
            columns=columns,
            categories=categories,
            outputs=outputs or {},
            size=Size(rows or 0, every or timedelta(0)),
            alarms=alarms,
            per=per,
            minimum_effect=minimum_effect,
            zone=zone,
            slow=slow,
            label=label,
            prediction=prediction,
            max_drop=max_drop,
            predict=predict,
            requests=Path(requests).expanduser().resolve() if requests else None,
            model_version=versions.pop() if len(versions) == 1 else "",
        )
        return dg.MaterializeResult(
            value=calibration.alarm.to_dict(),
            data_version=dg.DataVersion(calibration.alarm.digest),
            metadata=calibration.metadata(),
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"The alarm whose false alarms are calibrated by {history_key.to_user_string()}.",
        dagster_type=dg.Any,
        ins={"history": asset_input(history)},
    )(alarm)
