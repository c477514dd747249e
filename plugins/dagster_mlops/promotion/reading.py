"""A model's history as people read it: its moves, and the version that held each alias at some time."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import holder
from dagster_mlops.core.timestamps import read_timestamp
from dagster_mlops.errors import DagsterMlopsError, HistoryError
from dagster_mlops.promotion.history.entry import BY_HAND, Entry, made, read_entry
from dagster_mlops.promotion.history.event_log import identity
from dagster_mlops.promotion.history.log import keeper_of
from dagster_mlops.promotion.sources import EVENT_LOG, Sources

_FACTS = ("index", "at", "kind", "alias", "before", "after", "by", "why", "sha256")


@lazy_dataclass(frozen=True)
class Reading:
    """The moves of a model's aliases, oldest first, the place that answered, and what it leaves open.

    `holders` are the versions that hold the aliases now, where the registry answers.
    """

    model: str
    source: str
    moves: tuple[Entry, ...]
    holders: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        moves = [{**{name: getattr(move, name) for name in _FACTS}, "facts": dict(move.facts)} for move in self.moves]
        return {"model": self.model, "source": self.source, "moves": moves, "holders": dict(self.holders)} | {
            "notes": list(self.notes)
        }


@lazy_dataclass(frozen=True)
class Holder:
    """The version that an alias was on at some time, since when, and what is uncertain about it."""

    alias: str
    version: str
    since: str
    kind: str
    by: str
    note: str


@lazy_dataclass(frozen=True)
class Snapshot:
    """The versions that held the aliases of a model at some time."""

    model: str
    source: str
    at: str
    holders: tuple[Holder, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        facts = {"model": self.model, "source": self.source, "at": self.at}
        return {**facts, "holders": [dict(vars(each)) for each in self.holders], "notes": list(self.notes)}


def read_history(sources: Sources, alias: str = "") -> Reading:
    """The moves on record, of one alias or of all: from the registry or, without it, from Dagster's event log.

    Raises:
        DagsterMlopsError: neither has an entry, and why; or none is about this alias.
    """
    moves, damaged, source, holders, notes, texts = [], [], sources.registry, {}, [], dict[int, str]()
    try:
        with sources.models() as models:
            texts = dict(keeper_of(models).history(sources.model))
            moves, damaged = _entries(texts)
            holders = {name: _holder(models, sources.model, name) for name in {move.alias for move in moves}}
            if not texts:
                models.version(sources.model)  # an unknown model has an error of its own
        problem = HistoryError(f"{sources.registry} has no history of {sources.model!r}: no promotion was recorded.")
    except DagsterMlopsError as error:
        problem = error
    if not moves:
        stored = sources.event_log(identity(texts.get(0, ""))).texts
        moves, damaged = _entries({number: texts[0] for number, texts in stored.items()})
        if not moves:
            raise problem
        source, notes = EVENT_LOG, [f"the registry did not answer: {problem}"]
    if damaged:
        numbers = ", ".join(map(str, damaged))
        notes.append(f"entries that are missing or cannot be read: {numbers}. `history verify` says what is known.")
    aliases = sorted({move.alias for move in moves})
    if alias and alias not in aliases:
        raise HistoryError(
            f"{source} has no entry about {alias!r} of {sources.model!r}, but about {', '.join(aliases)}."
        )
    moves = [move for move in moves if alias in ("", move.alias)]
    last = {move.alias: move.after for move in moves if move.is_move}
    holders = {name: version for name, version in holders.items() if name in last}
    for name, version in sorted(holders.items()):
        if version != last[name]:
            notes.append(f"{name}: {_shown(version)} holds it now. It was moved by hand, and not written down yet.")
    if any(move.kind == BY_HAND for move in moves):
        notes.append("a move by hand has the time at which it was noticed: it was made some time before.")
    return Reading(sources.model, source, tuple(moves), holders, tuple(notes))


def _entries(texts: Mapping[int, str]) -> tuple[list[Entry], list[int]]:
    """The entries in order, and the numbers of those that are missing or cannot be read."""
    entries, damaged = [], []
    for number in range(max(texts, default=-1) + 1):
        try:
            entries.append(read_entry(texts.get(number, ""))[0])
        except HistoryError:
            damaged.append(number)
    return entries, damaged


def _holder(models: Any, model: str, alias: str) -> str:
    version = holder(models, model, alias)
    return version.version if version else ""


def holders_at(reading: Reading, at: datetime) -> Snapshot:
    """The versions that held the aliases at some time, by the moves that are on record."""
    by_alias: dict[str, list[Entry]] = {}
    for move in reading.moves:
        by_alias.setdefault(move.alias, []).append(move)
    holders = [_holder_at(alias, moves, at) for alias, moves in sorted(by_alias.items())]
    return Snapshot(reading.model, reading.source, at.isoformat(), tuple(holders), reading.notes)


def _holder_at(alias: str, moves: Iterable[Entry], at: datetime) -> Holder:
    moves = [move for move in made(moves) if move.is_move]
    before = [move for move in moves if _time(move) <= at]
    later = next((move for move in moves if _time(move) > at), None)
    note = ""
    if later and later.kind == BY_HAND:
        note = f"or already {_shown(later.after)}: moved by hand before {later.at}, when that was noticed"
    if before:
        last = before[-1]
        return Holder(alias, last.after, last.at, last.kind, last.by, note)
    return Holder(alias, later.before if later else "", "", "", "", note or "before the first move on record")


def _time(move: Entry) -> datetime:
    try:
        return read_timestamp(move.at)
    except ValueError:
        raise HistoryError(f"entry {move.index} has no time: {move.at!r}") from None


def _shown(version: str) -> str:
    return f"version {version}" if version else "no version"


def read_time(text: str) -> datetime:
    """A time; a date is its end, so that the moves of that day count. UTC, if no time zone is given.

    >>> read_time("2026-05-01T12:00").isoformat(), read_time("2026-05-01").isoformat()
    ('2026-05-01T12:00:00+00:00', '2026-05-01T23:59:59.999999+00:00')
    """
    try:
        at = read_timestamp(text)
    except ValueError:
        raise HistoryError(f"{text!r} is not a date or time such as 2026-05-01 or 2026-05-01T12:00.") from None
    return datetime.combine(at, time.max, UTC) if len(text) <= len("2026-05-01") else at
