"""Values of assets in a sensor, each loaded through its IO manager once for each materialization."""

from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import latest_event
from dagster_mlops.errors import MonitoringError

_VALUES: dict[dg.AssetKey, tuple[tuple[int, float], Any]] = {}  # the last one loaded, with id and time of its event


def latest_value(context: dg.SensorEvaluationContext, key: dg.AssetKey, name: str = "") -> Any:
    """The value of the latest materialization of an asset; None if there is none yet.

    Raises:
        MonitoringError: It cannot be loaded.
    """
    event = latest_event(context.instance, key)
    if event is None:
        return None
    stored, event_facts = _VALUES.get(key), (event.storage_id, event.timestamp)
    if stored and stored[0] == event_facts:
        return stored[1]
    if context.repository_def is None:
        raise MonitoringError(f"the sensor has no repository, from which {name or 'the value'} could be loaded.")
    try:
        value = context.repository_def.load_asset_value(key, instance=context.instance)
    except Exception as error:
        raise MonitoringError(
            f"{key.to_user_string()} cannot be loaded through its IO manager: {type(error).__name__}: {error}. "
            "The process that evaluates sensors must be able to read it."
        ) from error
    _VALUES[key] = event_facts, value
    return value
