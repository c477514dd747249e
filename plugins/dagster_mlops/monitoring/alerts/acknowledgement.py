"""Acknowledgements of incidents: observations of the asset in Dagster's event log, so that all who look see them."""

from datetime import UTC, datetime

import dagster as dg

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.facts import INCIDENT

_BY, _NOTE, _CHECK = "monitoring/acknowledged_by", "monitoring/note", "monitoring/check"
_EVALUATIONS = 1_000  # of a check, among which an incident is looked for
_READ = 200  # observations of an asset among which acknowledgements are looked for


def acknowledge(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, incident: str, *, by: str, note: str = ""
) -> None:
    """Write down that someone takes care of an incident, so that it is sent no more.

    Raises:
        MonitoringError: The name is empty.
    """
    if not by.strip():
        raise MonitoringError("an acknowledgement needs the name of the one who takes care of the incident.")
    metadata = {INCIDENT: incident, _CHECK: check.name, _BY: by, **({_NOTE: note} if note else {})}
    text = f"{by} takes care of incident {incident} of {check.name}."
    instance.report_runless_asset_event(
        dg.AssetObservation(asset_key=check.asset_key, description=text, metadata=metadata)
    )


def expect_incident(instance: dg.DagsterInstance, check: dg.AssetCheckKey, incident: str) -> None:
    """Refuse what is not an incident of a check: one that an evaluation names, or the time of one that names none.

    Raises:
        MonitoringError: No evaluation has it.
    """
    incidents = []
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=_EVALUATIONS):
        if isinstance(record.evaluation, dg.AssetCheckEvaluation) and not record.evaluation.passed:
            value = record.evaluation.metadata.get(INCIDENT)
            time = datetime.fromtimestamp(record.create_timestamp, UTC).isoformat()
            incidents.append(str(value.value) if value else time)
    if incident not in incidents:
        latest = f"its latest is {incidents[0]!r}" if incidents else "it has none"
        raise MonitoringError(f"{check.to_user_string()} has no incident {incident!r}; {latest}.")


def acknowledged_by(instance: dg.DagsterInstance, check: dg.AssetCheckKey, incident: str) -> str:
    """The name of the one who has acknowledged the incident; empty if no one has."""
    for record in instance.fetch_observations(check.asset_key, limit=_READ).records:
        observation = record.asset_observation
        values = {name: value.value for name, value in observation.metadata.items()} if observation else {}
        if (values.get(INCIDENT), values.get(_CHECK)) == (incident, check.name):
            return str(values.get(_BY, ""))
    return ""


def open_incident(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> str:
    """The incident that the last evaluation of a check names.

    Raises:
        MonitoringError: The check was never evaluated, holds, or names none.
    """
    record = instance.get_latest_asset_check_evaluation_record(check)
    evaluation = record.evaluation if record else None
    if not isinstance(evaluation, dg.AssetCheckEvaluation):
        raise MonitoringError(f"{check.to_user_string()} was never evaluated.")
    value = evaluation.metadata.get(INCIDENT)
    if evaluation.passed or not value:
        state = "holds" if evaluation.passed else "names no incident: take the one that its alert names"
        raise MonitoringError(f"the last evaluation of {check.to_user_string()} {state}.")
    return str(value.value)
