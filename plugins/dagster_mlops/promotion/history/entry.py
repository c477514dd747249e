"""Entries of a model's history: each is an in-toto statement about the version that an alias moved to."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.terminal import is_utf8
from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.history.envelope import STATEMENT, Envelope, unseal

PROMOTION, ROLLBACK, BY_HAND, UNDONE = "promotion", "rollback", "by hand", "undone"
"""Kinds of a move. One by hand was made in the registry's own UI or API, and noticed later. One that is undone takes
back the entry before it, whose promoter ended between the entry and the move."""
REQUEST, APPROVAL, REJECTION, LIFT = "request", "approval", "rejection", "lift"
"""Kinds of other entries: about a version (`after`) that may get the alias, which `before` holds.

A lift ends a rollback: the version that was left may be promoted again.
"""
_MOVES = (PROMOTION, ROLLBACK, BY_HAND, UNDONE)
_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://github.com/dagster-mlops/dagster-mlops/promotion/v1"
_TEXTS = ("kind", "model", "alias", "before", "after", "at", "by", "why", "root")


LONGEST_NAME, LONGEST_REASON, LARGEST = 200, 10_000, 5_000_000
"""Characters of the name of an author, of a reason and of a whole entry, at most: in MLflow 910 params."""


def refuse_text(what: str, text: str, most: int) -> None:
    """Refuse a text that a person gave for an entry, and that others could not read.

    Raises:
        HistoryError: it is longer than `most` characters, or has bytes that are not UTF-8.
    """
    if len(text) > most:
        raise HistoryError(f"{what} of {len(text):,} characters is too long: at most {most:,}. Put a link to the rest.")
    if not is_utf8(text):
        raise HistoryError(f"{what} is not text in UTF-8: {text[:100]!a}.")


@lazy_dataclass(frozen=True)
class Entry:
    """A move of an alias, or a step on the way to one.

    Attributes:
        index: Its place in the history, from 0.
        kind: ``promotion``, ``rollback``, ``undone``, ``by hand``, ``request``, ``approval``, ``rejection``, ``lift``.
        model: The registered model.
        alias: The alias.
        before: The version that held the alias; empty for none.
        after: The version that holds it now; empty for none.
        at: When it was decided, ISO 8601, UTC. Of a move by hand, when it was noticed.
        by: Who decided: a person, a schedule, a sensor.
        why: The reason.
        root: The root of the history's Merkle tree before this entry, which thereby vouches for all earlier ones.
        sha256: Hash of the files of `after`; empty where the registry has none.
        facts: The evidence, as plain data: the rows of the gate, metric values, checks, the Dagster run.
    """

    index: int
    kind: str
    model: str
    alias: str
    before: str
    after: str
    at: str
    by: str
    why: str
    root: str
    sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def misplaced(self, model: str, number: int) -> str:
        """The reason why this is not entry `number` of the history of `model`; empty if it is."""
        if self.model != model:
            return f"it belongs to {self.model!r}"
        return "" if self.index == number else f"entry {self.index} stands in its place"

    @property
    def is_move(self) -> bool:
        """True if the alias moved."""
        return self.kind in _MOVES

    def statement(self) -> dict[str, Any]:
        """The in-toto statement. A version without a hash of its files is named by its number."""
        name = f"{self.model}/{self.after}" if self.after else self.model
        digest = {"sha256": self.sha256} if self.sha256 else {"version": self.after or "none"}
        predicate = {name: getattr(self, name) for name in (*_TEXTS, "index")}
        return {
            "_type": _TYPE,
            "subject": [{"name": name, "digest": digest}],
            "predicateType": _PREDICATE,
            "predicate": {**predicate, "facts": dict(self.facts)},
        }


def read_entry(text: str) -> tuple[Entry, Envelope]:
    """An entry and the envelope that it came in.

    Raises:
        HistoryError: it is not an entry.
    """
    envelope = unseal(text, STATEMENT)
    statement = envelope.content()
    try:
        if (statement["_type"], statement["predicateType"]) != (_TYPE, _PREDICATE):
            raise HistoryError(f"a statement of another kind: {str(statement['predicateType'])[:100]}")
        predicate = statement["predicate"]
        texts, facts, index = {name: predicate[name] for name in _TEXTS}, predicate["facts"], predicate["index"]
        sha256 = statement["subject"][0]["digest"].get("sha256", "")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise HistoryError(f"a statement without its facts: {type(error).__name__}: {error}") from error
    if not all(isinstance(value, str) for value in (*texts.values(), sha256)) or type(index) is not int:
        raise HistoryError("a statement with facts of a wrong type")
    if not isinstance(facts, dict):
        raise HistoryError("a statement whose evidence is not a mapping")
    return Entry(index=index, **texts, sha256=sha256, facts=facts), envelope


def entry_at(model: str, number: int, text: str) -> tuple[Entry, Envelope]:
    """The entry that stands at this place of a history, and the envelope that it came in.

    Raises:
        HistoryError: it is not an entry, or one of another place, whose signature says nothing about this one.
    """
    entry, envelope = read_entry(text)
    if problem := entry.misplaced(model, number):
        raise HistoryError(problem)
    return entry, envelope


def promotion_behind(entries: Iterable[Entry], move: Entry) -> Entry | None:
    """The promotion by which the version of a move has passed the gate of its alias; None if it did not.

    It is the move itself or, for a rollback, an earlier one of the same files. A move by hand has no gate.
    """
    if move.kind == PROMOTION:
        return move
    if move.kind != ROLLBACK:
        return None
    subject = (PROMOTION, move.model, move.alias, move.after, move.sha256)
    earlier = [entry for entry in entries if entry.index < move.index]
    return next((e for e in reversed(earlier) if (e.kind, e.model, e.alias, e.after, e.sha256) == subject), None)


def made(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of one alias, oldest first, without moves that were not made, and what undid them."""
    real: list[Entry] = []
    for entry in entries:
        if entry.kind == UNDONE:
            place = next((place for place in reversed(range(len(real))) if real[place].is_move), None)
            real = [each for number, each in enumerate(real) if number != place]
        else:
            real.append(entry)
    return real
