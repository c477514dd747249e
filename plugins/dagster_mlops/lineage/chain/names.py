"""From what a user types or pastes to the ref that it names: one way for every command."""

import dataclasses
import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

from dagster_mlops.core.model_versions import parse_version
from dagster_mlops.errors import NotFoundError
from dagster_mlops.lineage.chain.predictions import find_batch, find_prediction, prediction_logs
from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.provenance import ModelVersion, PredictionBatch, Ref, TrainingRun, mask_credentials

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_REF = re.compile(r"([\w.-]+):([a-z_]+):(.+)")
# The pages of a run, a model version and an asset in the UIs of MLflow and Dagster, and MLflow's own name of a run.
_PAGES = (
    (re.compile(r"(?:https?://.*/)?runs:?/([0-9a-f-]{32,36})(?:[/?#].*)?"), r"\1"),
    (re.compile(r"https?://.*/models/([^/?#]+)/versions/(\d+)(?:[/?#].*)?"), r"\1/\2"),
    (re.compile(r"https?://.*/assets/([^?#]+)(?:[?#].*)?"), r"\1"),
)
_TRACKER = "mlflow"  # the tool of a model or run that no event of Dagster names
_TRACKING_URI = "MLFLOW_TRACKING_URI"


def find_ref(
    what: str,
    *,
    at: str = "",
    logs: Iterable[str] | None = None,
    tools: Tools | None = None,
    events: EventLog | None = None,
) -> Ref:
    """The ref of what a user names.

        find_ref("arrival_delay@champion", events=EventLog(instance))

    Args:
        what: ``MODEL@ALIAS``, ``MODEL/VERSION`` or ``MODEL`` (its newest version), with or without ``models:/``; the id
            of a training run; the request id of a prediction; a ref, ``tool:role:id``; a version as Dagster's UI
            shows it, alone or as the end of a ref; or, for the newest thing that it made, the key of an asset or the id
            of a Dagster run. Ids may be the first characters, and the address of a page in MLflow's or Dagster's UI
            names what is on it.
        at: Where the tool keeps it; default: the place on Dagster's record, else ``MLFLOW_TRACKING_URI``.
        logs: Prediction logs to search; default: those of all deployments on Dagster's record.
        tools: Tools to ask; default: the installed ones.
        events: Dagster's event log.

    Raises:
        NotFoundError: Nothing has this name; the message says where it was looked for.
    """
    tools, what = tools or Tools(), _on_page(what.strip())
    if (parts := _REF.fullmatch(what)) and (parts[1] in tools.names or not logs):
        return _as_recorded(Ref(*parts.groups(), at=at), tools, events)
    name, which = parse_version(what)
    if not logs and name in _models(events):
        return _version(name, which, at, tools, events)
    places = list(logs) if logs is not None else prediction_logs(events) if events else []
    reasons = []
    if places:
        try:
            return find_prediction(what, places, tools=tools)
        except NotFoundError as error:
            reasons.append(f"No prediction has this request id. {error}")
    if events and (batch := find_batch(what, events)):
        return batch
    run = Ref(_TRACKER, TrainingRun.role, what, at=at)
    if events and (entry := events.find(run) or events.of_version(what)):
        return entry.record.ref
    if _RUN_ID.fullmatch(what):
        return _located(run, events)
    address = at or os.environ.get(_TRACKING_URI, "")
    if address and not logs:
        ref = _version(name, which, address, tools, events)
        if which or ref.id != name:
            return ref
        reasons.append(f"MLflow at {mask_credentials(address)} has no model of this name.")
    raise NotFoundError("\n".join([f"nothing here is named {what!r}.", *reasons, *_looked_for(events)]))


def _on_page(text: str) -> str:
    for pattern, name in _PAGES:
        if page := pattern.fullmatch(text):
            return unquote(page.expand(name)).rstrip("/")
    return text


def _as_recorded(ref: Ref, tools: Tools, events: EventLog | None) -> Ref:
    """A ref as Dagster recorded it, although it was typed without its place or with a longer or shorter version."""
    if ref.tool not in (*tools.names, PredictionBatch.tool):
        raise NotFoundError(f"no tool {ref.tool!r} is installed to ask for {str(ref)!r}; known: {_list(tools.names)}.")
    if ref.role == ModelVersion.role:
        return _version(*parse_version(ref.id), ref.at, tools, events, tool=ref.tool)
    if events and not events.find(ref) and (entry := events.of_version(ref.id, ref)):
        return entry.record.ref
    return _located(ref, events)


def _located(ref: Ref, events: EventLog | None) -> Ref:
    if ref.at:
        return ref
    entry = events.find(ref) if events else None
    address = os.environ.get(_TRACKING_URI, "") if ref.tool == _TRACKER else ""
    return Ref(ref.tool, ref.role, ref.id, at=entry.record.ref.at if entry else address)


def _version(name: str, which: str, at: str, tools: Tools, events: EventLog | None, *, tool: str = "") -> Ref:
    """The ref of a version; for an alias, of the version that the registry gives it, else of the last one on record."""
    versions = [record for record in _versions(events) if record.name == name and tool in ("", record.tool)]
    first = versions[0] if versions else None
    tool = tool or (first.tool if first else _TRACKER)
    at = at or (first.ref.at if first else os.environ.get(_TRACKING_URI, "") if tool == _TRACKER else "")
    if which and not which.startswith("@"):
        return Ref(tool, ModelVersion.role, f"{name}/{which}", at=at)
    if not which and first:
        return first.ref
    ref = Ref(tool, ModelVersion.role, f"{name}{which}", at=at)
    tools.places.add(at)  # the caller's, from the event log or the environment
    answer = tools.ask(ref)
    if isinstance(answer.record, ModelVersion):
        return dataclasses.replace(answer.record.ref, at=at or answer.record.ref.at)
    on_record = next((record.ref for record in versions if which[1:] in record.aliases), None)
    return on_record if on_record and answer.bucket == "inaccessible" else ref


def _versions(events: EventLog | None) -> list[ModelVersion]:
    """The model versions on Dagster's record, newest event first."""
    return [record for record, _ in events.entries(ModelVersion)] if events else []


def _models(events: EventLog | None) -> set[str]:
    return {version.name for version in _versions(events)}


def _looked_for(events: EventLog | None) -> list[str]:
    """The places where a name was looked for, and how it can be found elsewhere."""
    if events is None:
        return [
            "There is no Dagster instance to look it up in: set DAGSTER_HOME to the folder with its dagster.yaml, "
            "or pass --dagster-home DIR. Without one, a prediction needs --log DIR, and a model or a run needs "
            f"--at TRACKING_URI or {_TRACKING_URI}."
        ]
    models = sorted(_models(events))
    models_text = f"It knows the models {_list(models)}." if models else "It knows no model."
    return [
        f"Dagster's event log has no model, training run, request or version of this name. {models_text} For what was "
        f"made without Dagster, name the place as well: --at TRACKING_URI, or {_TRACKING_URI}."
    ]


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:9]) + (f" and {len(names) - 9} more" if len(names) > 9 else "") or "none"
