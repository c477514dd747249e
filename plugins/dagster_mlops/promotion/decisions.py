"""Requests for approval, and decisions about them, as entries of a model's history."""

import dataclasses

from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.approval import (
    Approval,
    authors_of,
    decisions,
    is_about,
    new_notes,
    note_of,
    notes_of,
    requests,
)
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.history.entry import APPROVAL, REQUEST, Entry, read_entry
from dagster_mlops.promotion.history.log import History, keeper_of, readable
from dagster_mlops.promotion.verdict import FAILS, HOLDS, Row, Verdict
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsHistory, turn_of


def with_approval(
    approval: Approval,
    history: History,
    candidate: ModelVersion,
    alias: str,
    before: str,
    verdict: Verdict,
    author: Author,
) -> Verdict | None:
    """The verdict of a gate that holds, with a row about people; None if another promoter was quicker.

    Without an open request, one is made: it keeps the rows that people decide about.
    """
    entries = history.since_last_move(alias)
    request = approval.open_request(entries, alias, before, candidate)
    if request is None:
        notes = notes_of(history.registry, candidate)
        facts = {**verdict.evidence(), **author.facts(), "notes": notes, "approval": approval.facts()}
        if not history.append(REQUEST, alias, before, candidate.version, by=author.by, why=verdict.why, facts=facts):
            return None
        entries = history.since_last_move(alias)
        request = entries[-1]
    if not _take_notes(history, candidate, request):
        return None
    history.confirm()
    row, entries, _ = answered(approval, history, candidate, request)
    approvals = [{"by": entry.by, "at": entry.at, "why": entry.why} for entry in entries if entry.kind == APPROVAL]
    return dataclasses.replace(
        verdict,
        promotes=row.verdict == HOLDS,
        why=f"{verdict.why}; {row.why}" if row.verdict == HOLDS else f"{row.rule}: {row.why}",
        rows=(*verdict.rows, row),
        facts={**verdict.facts, "approvals": approvals},
    )


def answered(
    approval: Approval, history: History, candidate: ModelVersion, request: Entry
) -> tuple[Row, list[Entry], list[Entry]]:
    """The row of a request by what people have said, the entries in which they did, and those that count."""
    answers = decisions(history.since_last_move(request.alias), request)
    entries = [entry for entry in answers if history.is_trusted(entry)]
    authors = authors_of(candidate) if approval.separate_duties else []
    row = approval.judge(request, entries, barred := [*authors, request.by])
    if approval.separate_duties and not authors and row.verdict == HOLDS:
        why = "the authors of this version are unknown, because its training run cannot be read"
        row = dataclasses.replace(row, verdict=FAILS, why=why)
    return row, entries, [*approval.counted(entries, barred).values()]


def decide(
    registry: HoldsModels,
    model: str,
    kind: str,
    *,
    by: str,
    why: str = "",
    version: str = "",
    alias: str = "champion",
    keeper: KeepsHistory | None = None,
) -> tuple[Entry, History]:
    """Write an approval or a rejection of the open request for a version, by default of the only one.

    Raises:
        HistoryError: such a request is missing or has ended, there are several, or the person is not named.
    """
    if not by.strip():
        raise HistoryError("Name the person who decides.")
    with turn_of(registry, model):
        history = History(registry, keeper_of(registry, keeper), model)
        history.settle(alias)
        waiting = {request.after: request for request in reversed(requests(history.since_last_move(alias), alias))}
        version = version or (next(iter(waiting)) if len(waiting) == 1 else "")
        if version not in waiting:
            versions = ", ".join(waiting) or "none"
            raise HistoryError(
                f"no promotion of {model!r} to {alias!r} waits for a decision about version "
                f"{version or '(not named)'}; waiting: {versions}. A promotion asset with approval= asks for one when "
                "its rules hold."
            )
        request = waiting[version]
        if (approval := Approval.of(request)) and approval.has_ended(request):
            raise HistoryError(
                f"the request of {request.at[:10]} about version {version} of {model!r} has ended. Materialize the "
                "promotion asset: it asks anew if its rules still hold."
            )
        if not is_about(request, registry.version(model, version)):
            raise HistoryError(
                f"version {version} of {model!r} has other files than those of the request of {request.at[:10]}: it "
                "was replaced in the registry. Materialize the promotion asset: it asks anew if its rules still hold."
            )
        if approval and not approval.names(by):
            raise HistoryError(
                f"{by.strip()!r} is not one of the approvers of {model!r}: {', '.join(approval.approvers)}. Name "
                "the one who decides: `--as NAME` of the command, or `by` in the config of the asset."
            )
        facts = {"request": request.index}
        if not history.append(kind, alias, request.before, version, by=by.strip(), why=why, facts=facts):
            raise HistoryError(f"another promoter of {model!r} was quicker. Decide again.")
        history.confirm()
        entry, _ = read_entry(history.texts[-1])
        return entry, history


def request_of(history: History, decision: Entry) -> Entry:
    """The request that a decision is about, before the alias moves."""
    return next(e for e in history.since_last_move(decision.alias) if e.index == decision.facts["request"])


def _take_notes(history: History, candidate: ModelVersion, request: Entry) -> bool:
    """Write the approvals that people have given by notes on the version; each note counts once."""
    texts = sorted(new_notes(history.registry, candidate, request))
    if not texts:
        return True
    all_entries = readable(history.model, dict(enumerate(history.texts))).values()
    entries = [entry for entry in all_entries if entry.after == request.after]
    if {entry.alias for entry in entries if entry.kind == REQUEST} != {request.alias}:
        return True  # it waits for several aliases, and a note does not say which one
    counted = {entry.facts.get("note") for entry in entries if entry.kind == APPROVAL}
    for text in texts:
        person, comment = note_of(text)
        if not person or text in counted:
            continue
        facts = {"request": request.index, "note": text}
        if not history.append(
            APPROVAL, request.alias, request.before, candidate.version, by=person, why=comment, facts=facts
        ):
            return False
    return True
