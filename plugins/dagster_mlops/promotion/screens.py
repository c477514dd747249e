"""Screens of `dagster-mlops history`."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from dagster_mlops.core.metadata import shorten
from dagster_mlops.core.screens import conclusion, grid
from dagster_mlops.core.terminal import line
from dagster_mlops.core.timestamps import read_timestamp
from dagster_mlops.promotion.audit import Restored
from dagster_mlops.promotion.decision_outcome import Decision
from dagster_mlops.promotion.history.entry import BY_HAND, LIFT, Entry
from dagster_mlops.promotion.history.verification import Finding, Verification
from dagster_mlops.promotion.reading import Reading, Snapshot
from dagster_mlops.promotion.rollback import Rollback
from dagster_mlops.promotion.verdict import HOLDS

_NO_ASSET = "No asset of Dagster was updated: none is known that promotes to this alias. The next promotion does it."


_REASON, _NAME = 300, 100  # characters of a reason and of a name; JSON has all of them


def history_screen(reading: Reading) -> RenderableType:
    """The moves, newest first, and the place that answered."""
    table = grid("", "bold", "", "", "dim")
    for move in reversed(reading.moves):
        table.add_row(
            _when(move.at), move.alias, _versions(move), _by(move.kind, move.by), shorten(line(move.why), _REASON)
        )
    count = f"{len(reading.moves)} entr{'y' if len(reading.moves) == 1 else 'ies'}"
    last = Text(line(f"{count} of {reading.model}, newest first, times in UTC, from {reading.source}."), style="dim")
    return Group(table, Text(), *_notes(reading.notes), last)


def holders_screen(snapshot: Snapshot) -> RenderableType:
    """The versions that held the aliases at some time."""
    table = grid("bold", "", "dim", "yellow")
    for each in snapshot.holders:
        since = f"since {_when(each.since)}, {_by(each.kind, each.by)}" if each.since else ""
        table.add_row(each.alias, f"version {each.version}" if each.version else "no version", since, each.note)
    last = f"Aliases of {snapshot.model} at {_when(snapshot.at, 'seconds')} UTC, from {snapshot.source}."
    return Group(table, Text(), *_notes(snapshot.notes), Text(line(last), style="dim"))


def verification_screen(verification: Verification) -> RenderableType:
    """The findings by entry, the strength, and the verdict as the last line."""
    findings, notes = (_findings(verification.findings, "red"), _findings(verification.notes, "yellow"))
    size, count = len(verification.entries), len(verification.findings)
    facts = grid("dim", "")
    facts.add_row("entries", str(size))
    facts.add_row("root", verification.root)
    facts.add_row("strength", verification.strength)
    entries = f"{size} entr{'y' if size == 1 else 'ies'}"
    good = f"The history of {verification.model} holds: {entries}, none was changed or is missing."
    bad = f"The history of {verification.model} does not hold: {count} finding{'' if count == 1 else 's'}."
    parts = [*([notes, Text()] if verification.notes else []), *([findings, Text()] if count else [])]
    return Group(facts, Text(), *parts, conclusion(verification.holds, good, bad))


def _findings(findings: Sequence[Finding], style: str) -> RenderableType:
    table = grid(style, "", "")
    for finding in findings:
        number = "" if finding.entry is None else f"entry {finding.entry}"
        table.add_row(number, finding.store, line(finding.problem))
    return table


def restored_screen(restored: Restored) -> RenderableType:
    """The entries that were written, by place."""
    table = grid("bold", "")
    for place, numbers in restored.entries.items():
        table.add_row(place, f"{len(numbers)} written: {_span(numbers)}" if numbers else "has all entries")
    return table


def rollback_screen(rollback: Rollback) -> RenderableType:
    """The move, what it holds against, and what Dagster knows of it."""
    entry = rollback.entry
    if entry.kind == LIFT:
        outcome = f"Version {entry.after} of {entry.model} may be promoted to {entry.alias} again."
    else:
        outcome = f"{entry.alias} of {entry.model} is version {entry.after} again, no longer {entry.before}."
    lift = f"dagster-mlops rollback {entry.model} --alias {entry.alias} --lift {entry.before} --reason …"
    notes = [] if entry.kind == LIFT else [f"Version {entry.before} is not promoted again until you lift this: {lift}"]
    notes.append(f"Registry: {rollback.registry}.")
    asset = f"Dagster's asset {rollback.asset} has this event." if rollback.asset else _NO_ASSET
    if rollback.problem:
        asset = f"Dagster does not know it yet: {rollback.problem}. The next promotion writes it there."
    return Group(Text(line(f"✓ {outcome}"), style="green"), *(Text(line(note)) for note in (*notes, asset)))


def decision_screen(decision: Decision) -> RenderableType:
    """The decision, if it counts, what is still missing, and what to do next."""
    entry, row = decision.entry, decision.row
    what = f"{entry.kind} of version {entry.after} of {entry.model} for {entry.alias} by {entry.by}"
    notes = [f"{what}: entry {entry.index} of {decision.registry}"]
    if not decision.counts:
        notes.append(f"It does not count: {entry.by} may not decide about this version.")
    if row:
        notes.append(f"{row.rule}: {row.verdict}; {row.why}")
    if decision.problem:
        notes.append(f"The decision is recorded, but {decision.problem}. The next run of the promotion asset has it.")
    elif row is None or row.verdict == HOLDS:
        notes.append("Materialize the promotion asset to move the alias; approval_sensor() does it by itself.")
    return Group(*(Text(line(note)) for note in notes))


def _by(kind: str, author: str) -> str:
    return kind if kind == BY_HAND else f"{kind} by {shorten(line(author), _NAME)}"


def _span(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) < 10 else f"{numbers[0]} … {numbers[-1]}"


def _notes(notes: tuple[str, ...]) -> list[Text]:
    return [Text(line(f"! {note}"), style="yellow") for note in notes]


def _versions(move: Entry) -> str:
    return f"{move.before or 'none'} → {move.after or 'none'}" if move.is_move else f"({move.after})"


def _when(text: str, precision: str = "minutes") -> str:
    try:
        return read_timestamp(text).replace(tzinfo=None).isoformat(" ", precision)
    except ValueError:
        return text
