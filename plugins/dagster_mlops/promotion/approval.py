"""Approval of a promotion by people: asked for and given in the history of the model, so that no run waits for it."""

import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import shorten
from dagster_mlops.core.terminal import line
from dagster_mlops.core.timestamps import read_timestamp
from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION, REQUEST, Entry
from dagster_mlops.promotion.verdict import FAILS, HOLDS, WAITS, Row
from dagster_mlops.provenance import NAMESPACE, ModelVersion
from dagster_mlops.tools import HoldsModels, Tool, installed_tools

NOTE = f"{NAMESPACE}.approve"
"""Key of a note on a model version (in MLflow, a tag) by which a person approves: ``name`` or ``name: comment``."""
_REASON = 300  # characters


WAITS_FOR = "waits_for"
"""End of a metadata key, after the registry's name: a promotion asset has it while its last run waits for people."""
_UNTIL = "%Y-%m-%d %H:%M UTC"


@lazy_dataclass(frozen=True)
class Approval:
    """The people whose approval a promotion needs once its gate holds.

        promotion_asset(..., approval=Approval(people=2, approvers=["ann", "bob", "cleo"], separate_duties=True))

    Args:
        people: Number of different people who have to approve.
        approvers: Names that count; by default, any.
        valid_days: Days for which a request is open; after them, the next run asks anew.
        separate_duties: The author of the commit, the user who ran the training and the one who launched the promotion
            do not count. A person is compared with an author's name, address, and the address up to its @.
    """

    people: int = 1
    approvers: Sequence[str] = ()
    valid_days: float = 7.0
    separate_duties: bool = False

    def refuse_impossible(self) -> None:
        """Refuse a number of people that can never be reached.

        Raises:
            DagsterInvalidDefinitionError: it cannot.
        """
        is_list = isinstance(self.approvers, list | tuple | set | frozenset)
        names = self.approvers if is_list else ()
        several = {name.strip().lower() if isinstance(name, str) else "" for name in names}
        if not is_list or "" in several:
            raise dg.DagsterInvalidDefinitionError(
                f"Approval(approvers={self.approvers!r}): give a list of names, such as ['ann', 'bob']."
            )
        types = {"people": (int,), "valid_days": (int, float), "separate_duties": (bool,)}
        if wrong := [name for name, accepted in types.items() if type(getattr(self, name)) not in accepted]:
            raise dg.DagsterInvalidDefinitionError(
                f"{self}: {', '.join(wrong)}. people is a whole number, valid_days a number, and separate_duties True "
                "or False."
            )
        if not 1 <= self.people <= (len(several) or self.people):
            raise dg.DagsterInvalidDefinitionError(
                f"Approval(people={self.people}) of {len(several)} approvers: at least one person approves, and at "
                "most as many as there are approvers."
            )
        if not 0 < self.valid_days < 36_500:
            raise dg.DagsterInvalidDefinitionError(
                f"Approval(valid_days={self.valid_days}): give the days for which a request is open, such as 7."
            )

    def facts(self) -> dict[str, Any]:
        """The facts for the request."""
        return {**vars(self), "approvers": [*self.approvers]}

    @classmethod
    def of(cls, request: Entry) -> "Approval | None":
        """The approval that a request asks for; None if it does not say."""
        try:
            approval = cls(**request.facts["approval"])
            approval.refuse_impossible()
        except (KeyError, TypeError, AttributeError, dg.DagsterInvalidDefinitionError):
            return None
        return approval

    def names(self, person: str) -> bool:
        """True if the name of a person is one that counts."""
        names = {name.strip().lower() for name in self.approvers}
        return not names or person.strip().lower() in names

    def counted(self, decisions: Iterable[Entry], barred: Iterable[str]) -> dict[str, Entry]:
        """The last decision of each person who may decide."""
        return {
            name: entry
            for name, entry in _latest(decisions).items()
            if self.names(name) and not (self.separate_duties and is_one_of(name, barred))
        }

    def judge(self, request: Entry, decisions: Sequence[Entry], barred: Sequence[str]) -> Row:
        """The row of a request: holds when enough people have approved, fails when one has rejected, else waits."""
        latest, counted = _latest(decisions), self.counted(decisions, barred)
        ignored = sorted(entry.by for name, entry in latest.items() if name not in counted)
        rejections = [entry for entry in counted.values() if entry.kind == REJECTION]
        approvals = sorted(entry.by for entry in counted.values() if entry.kind == APPROVAL)
        note = f"; {', '.join(ignored)} may not approve this" if ignored else ""
        if rejections:
            verdict, why = FAILS, f"rejected by {rejections[0].by}: {shorten(rejections[0].why, _REASON)}"
        elif len(approvals) >= self.people:
            verdict, why = HOLDS, f"approved by {', '.join(approvals)}"
        else:
            so_far = f"{len(approvals)} of {self.people} so far; " * bool(approvals)
            until = self.ends(request).strftime(_UNTIL)
            verdict, why = WAITS, f"{so_far}open until {until}; approve by `{command_for(request)}`{note}"
        title = f"approved by {self.people} {'person' if self.people == 1 else 'people'}"
        return Row(title, verdict, ", ".join(approvals) or "0", "", str(self.people), why)

    def ends(self, request: Entry) -> datetime:
        """The time at which a request ends."""
        return ends(request, self.valid_days)

    def has_ended(self, request: Entry) -> bool:
        """True from the time at which a request ends."""
        return datetime.now(UTC) >= self.ends(request)

    def open_request(self, entries: Sequence[Entry], alias: str, before: str, version: ModelVersion) -> Entry | None:
        """The last request for a version, if it has the same files, the same version still holds the alias, and it is
        not over.
        """
        request = next((entry for entry in requests(entries, alias) if entry.after == version.version), None)
        is_open = request and request.before == before and is_about(request, version) and not self.has_ended(request)
        return request if is_open else None


def is_about(request: Entry, version: ModelVersion) -> bool:
    """True if a request is about these files: the number may be that of another version by now."""
    return (request.after, request.sha256) == (version.version, version.sha256)


def ends(request: Entry, valid_days: float) -> datetime:
    """The time at which a request ends; one without a time, which this library does not write, has ended."""
    try:
        return read_timestamp(request.at) + timedelta(days=valid_days)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)


def _latest(decisions: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.by.strip().lower(): entry for entry in decisions}


def command_for(request: Entry) -> str:
    """The command by which a person approves."""
    alias = f" --alias {shlex.quote(line(request.alias))}" * (request.alias != "champion")
    return f"dagster-mlops approve {shlex.quote(line(request.model))} {request.after}{alias}"


def requests(entries: Sequence[Entry], alias: str) -> list[Entry]:
    """The requests since the last move of an alias, newest first: a move ends them."""
    since: list[Entry] = []
    for entry in reversed(entries):
        if entry.alias == alias and entry.is_move:
            break
        if entry.alias == alias and entry.kind == REQUEST:
            since.append(entry)
    return since


def decisions(entries: Sequence[Entry], request: Entry) -> list[Entry]:
    """The approvals and rejections of a request, oldest first."""
    return [
        entry
        for entry in entries
        if entry.index > request.index
        and entry.kind in (APPROVAL, REJECTION)
        and (entry.alias, entry.after) == (request.alias, request.after)
    ]


def is_one_of(person: str, authors: Iterable[str]) -> bool:
    """True if a person is one of these authors, by name or address.

    >>> is_one_of("ann", ["Ann Lee <ann@example.com>"]), is_one_of("ann lee", ["Ann Lee <ann@example.com>"])
    (True, True)
    >>> is_one_of("bob", ["Ann Lee <ann@example.com>"]), is_one_of("root@example.com", ["root"])
    (False, True)
    """
    names = _names(person)
    return any(names & _names(author) for author in authors)


def _names(person: str) -> set[str]:
    """The names of a person: the name, the address, and the address up to its @."""
    name, _, address = person.strip().lower().partition("<")
    address = address.rstrip("> ") or (name if "@" in name else "")
    return {name.strip(), address, address.partition("@")[0]} - {""}


def authors_of(version: ModelVersion) -> list[str]:
    """The user who ran the training of a version, and the author of its commit, as far as their tools can say."""
    tools, refs = installed_tools(), list(version.upstream)
    authors = version.tool_facts.get("authors")  # of a copy, whose training is on record elsewhere
    names = [str(name) for name in authors] if isinstance(authors, list | tuple) else []
    for ref in refs:
        tool = tools.get(ref.tool)
        if ref.role not in ("training_run", "commit") or not isinstance(tool, Tool):
            continue
        record = getattr(tool.resolve(ref), "record", None)
        if record is not None:
            facts = record.tool_facts
            address = f" <{facts['address']}>" if facts.get("address") else ""
            names += [str(facts.get("user", "")), f"{getattr(record, 'author', '')}{address}".strip()]
            refs += [each for each in record.upstream if each.role == "commit"]
    return [name for name in names if name]


def new_notes(registry: HoldsModels, version: ModelVersion, request: Entry) -> set[str]:
    """The notes by which people approve a version that are newer than the request: none can approve what was not asked.

    MLflow copies tags with a version, and a training may set them.
    """
    older = request.facts.get("notes")
    return {*notes_of(registry, version)} - {*(older if isinstance(older, list) else ())}


def notes_of(registry: HoldsModels, version: ModelVersion) -> list[str]:
    """The notes by which people approve a version: that of the key, and those of ``key.anything``."""
    return [text for name, text in registry.notes(version).items() if name == NOTE or name.startswith(f"{NOTE}.")]


def note_of(text: str) -> tuple[str, str]:
    """The person and the comment of a note.

    >>> note_of("ann: good on the weekend, too"), note_of("bob")
    (('ann', 'good on the weekend, too'), ('bob', ''))
    """
    name, _, comment = text.partition(":")
    return re.sub(r"\s+", " ", name).strip()[:100], comment.strip()[:500]
