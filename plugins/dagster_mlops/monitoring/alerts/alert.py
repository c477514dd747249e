"""Alerts, and which evaluations of an asset check make one."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import dagster as dg

from dagster_mlops.monitoring.facts import HARM, INCIDENT, STATE

Event = Literal["detected", "reminder", "recovered"]


class Alert(NamedTuple):
    """Something to tell people. `incident` is the same for all alerts of one incident, as a key for deduplication."""

    event: Event
    check: str  # asset:check
    incident: str
    severity: Literal["WARN", "ERROR"]
    text: str
    since: datetime
    metadata: Mapping[str, Any]  # of the evaluation, as plain values; none in a reminder

    @property
    def title(self) -> str:
        """The check and what happened, in one line."""
        names = {"detected": "failed", "reminder": "still fails", "recovered": "holds again"}
        return f"{self.check} {names[self.event]}"


class Evaluation(NamedTuple):
    """An evaluation of a check, as far as alerts need it. `incident` is the one that it names itself, or empty."""

    id: int
    time: datetime
    passed: bool
    undecided: bool
    incident: str
    severity: Literal["WARN", "ERROR"]
    text: str
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, record: Any) -> "Evaluation":
        """The evaluation of Dagster's record of it."""
        evaluation: dg.AssetCheckEvaluation = record.evaluation
        values = {name: getattr(value, "value", None) for name, value in evaluation.metadata.items()}
        return cls(
            record.id,
            datetime.fromtimestamp(record.create_timestamp, UTC),
            evaluation.passed,
            values.get(STATE) == "undecided",
            str(values.get(INCIDENT) or ""),
            "ERROR" if evaluation.severity == dg.AssetCheckSeverity.ERROR else "WARN",
            evaluation.description or "",
            values,
        )


class Case(NamedTuple):
    """A check as its alerts see it: its open incident, or the last one, and the evaluations that were read."""

    last: int = 0  # id of the latest evaluation
    pending: tuple[int, ...] = ()  # ids of evaluations whose run has not ended
    incident: str = ""
    is_open: bool = False
    since: str = ""  # ISO 8601, of the incident
    ended: str = ""
    sent: str = ""  # of the last alert about it
    severity: Literal["WARN", "ERROR"] = "WARN"
    text: str = ""
    is_note: bool = False  # an incident that hurts no one, which is not sent

    def waiting_for(self, id: int) -> "Case":
        """The case with an evaluation to look at again."""
        return self._replace(last=max(self.last, id), pending=tuple(dict.fromkeys([*self.pending, id])))

    def after(
        self, evaluation: Evaluation, check: str, cooldown: timedelta, *, send_benign: bool = False
    ) -> "tuple[Case, Alert | None]":
        """The case after an evaluation, and the alert that it makes.

        An incident that begins within `cooldown` after the last one continues it. An evaluation that could not judge
        changes nothing. A benign incident makes an alert when it turns out to be more than that.
        """
        read = self._replace(
            last=max(self.last, evaluation.id), pending=tuple(each for each in self.pending if each != evaluation.id)
        )
        if evaluation.undecided:
            return read, None
        time = evaluation.time.isoformat()
        if evaluation.passed:
            if not self.is_open:
                return read, None
            alert = None if self.is_note else self.alert("recovered", check, evaluation.text, evaluation.metadata)
            return read._replace(is_open=False, ended=time), alert
        facts: dict[str, Any] = {"is_open": True, "severity": evaluation.severity, "text": evaluation.text}
        is_same = (
            evaluation.incident in ("", self.incident) if self.is_open else evaluation.incident == self.incident != ""
        )
        harm = evaluation.metadata.get(HARM)
        # Windows on the way to recovery do not say it again.
        is_note = not send_benign and (harm == "benign" or (harm is None and is_same and self.is_note))
        is_soon = self.ended and evaluation.time - datetime.fromisoformat(self.ended) < cooldown
        if is_same or (not self.is_open and is_soon):
            if is_note or not self.is_note:
                return read._replace(**facts), None
            opened = read._replace(**facts, sent=time, is_note=False)
        else:
            begin = {"incident": evaluation.incident or time, "since": time, "ended": "", "sent": time}
            opened = read._replace(**facts, **begin, is_note=is_note)
        return opened, None if is_note else opened.alert("detected", check, evaluation.text, evaluation.metadata)

    def reminder(self, check: str, time: datetime, after: timedelta) -> "tuple[Case, Alert | None]":
        """The case and a reminder, if its incident is open and was last sent as long ago."""
        if not self.is_open or self.is_note or time - datetime.fromisoformat(self.sent) < after:
            return self, None
        return self._replace(sent=time.isoformat()), self.alert("reminder", check, self.text, {})

    def alert(self, event: Event, check: str, text: str, metadata: Mapping[str, Any]) -> Alert:
        return Alert(event, check, self.incident, self.severity, text, datetime.fromisoformat(self.since), metadata)
