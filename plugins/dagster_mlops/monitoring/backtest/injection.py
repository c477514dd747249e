"""Incidents that are put into a history, in words such as ``temp: missing from 2013-05-01``."""

import re
from datetime import datetime, timedelta
from typing import Any

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.timestamps import read_timestamp
from dagster_mlops.errors import MonitoringError

FORMS = (
    "COLUMN: missing from DATE",
    "COLUMN: is VALUE from DATE",
    "COLUMN: times NUMBER from DATE",
    "COLUMN: plus NUMBER [sd] from DATE",
    "COLUMN: swapped with COLUMN from DATE",
)
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?"
_FAULT = re.compile(
    rf"(?P<missing>missing)|is (?P<value>.+?)|times (?P<factor>{_NUMBER})|plus (?P<term>{_NUMBER})(?P<sd> sd)?"
    r"|swapped with (?P<other>.+?)",
    re.IGNORECASE,
)
_SPAN = re.compile(r"(?: in (?P<percent>[0-9.]+) ?%)? from (?P<start>\S+)(?: to (?P<end>\S+))?$", re.IGNORECASE)


@lazy_dataclass(frozen=True)
class Injection:
    """An incident: a fault of a column in a share of the rows of some time.

    >>> Injection.read("temp: missing in 30 % from 2013-05-01 to 2013-05-03").share
    0.3
    """

    text: str
    column: str
    fault: dict[str, str]
    share: float
    start: datetime
    end: datetime

    @classmethod
    def read(cls, text: str) -> "Injection":
        """The incident that a text names: one of the :data:`FORMS`, with ``in 30 %`` before ``from`` and ``to DATE``.

        Without an end it lasts for three days.

        Raises:
            MonitoringError: the text is not one of the forms.
        """
        column, _, rest = text.partition(":")
        span = _SPAN.search(rest)
        fault = _FAULT.fullmatch(rest[: span.start()].strip()) if span else None
        if not column.strip() or not span or not fault:
            raise MonitoringError(f"{text!r} is not an incident. Write one of: {'; '.join(FORMS)}.")
        try:
            start = read_timestamp(span["start"])
            end = read_timestamp(span["end"]) if span["end"] else start + timedelta(days=3)
            share = float(span["percent"]) / 100 if span["percent"] else 1.0
        except ValueError as error:
            raise MonitoringError(f"{text!r}: {error}. Write dates as 2013-05-01 or 2013-05-01T14:30.") from error
        if not start < end or not 0 < share <= 1:
            raise MonitoringError(f"{text!r}: an incident ends after it starts, and is in more than 0 up to 100 %.")
        parts = {name: value for name, value in fault.groupdict().items() if value is not None}
        return cls(text.strip(), column.strip(), parts, share, start, end)

    def apply(self, frame: Any, time: str) -> Any:
        """The rows of the incident's time with the fault in them.

        Args:
            frame: The history, a pandas frame.
            time: Its time column.

        Raises:
            MonitoringError: a column is not there, is not of numbers, or no row lies in the incident's time.
        """
        for name in (self.column, self.fault.get("other", self.column)):
            if name not in frame:
                raise MonitoringError(f"{self.text!r}: the history has no column {name!r}.")
        clock = pd.to_datetime(frame[time], utc=True)
        rows = frame[(clock >= self.start) & (clock < self.end)].copy()
        if rows.empty:
            raise MonitoringError(f"{self.text!r}: the history has no rows from {self.start} to {self.end}.")
        use = np.random.default_rng(0).random(len(rows)) < self.share
        before = rows[self.column].copy()
        rows[self.column] = before.where(~use, self._values(rows, frame))
        if other := self.fault.get("other"):
            rows[other] = rows[other].where(~use, before)
        return rows

    def _values(self, rows: Any, frame: Any) -> Any:
        old, fault = rows[self.column], self.fault
        if "missing" in fault:
            return np.nan if pd.api.types.is_numeric_dtype(old) else None
        if "other" in fault:
            return rows[fault["other"]]
        if "value" in fault:
            number = pd.api.types.is_numeric_dtype(old)
            try:
                return float(fault["value"]) if number else fault["value"]
            except ValueError:
                rows[self.column] = old.astype(object)
                return fault["value"]
        if not pd.api.types.is_numeric_dtype(old):
            raise MonitoringError(f"{self.text!r}: {self.column!r} is not a column of numbers.")
        if "factor" in fault:
            return old * float(fault["factor"])
        unit = float(frame[self.column].std()) if "sd" in fault else 1.0
        return old + float(fault["term"]) * unit
