"""Rollbacks in force: versions that were rolled back from, until a person lifts that or moves the alias there."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dagster_mlops.promotion.history.entry import LIFT, ROLLBACK, Entry, made
from dagster_mlops.provenance import ModelVersion

if TYPE_CHECKING:
    from dagster_mlops.promotion.history.log import History


def rollbacks(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The rollbacks in force among the entries of one alias, oldest first, by the version that was rolled back from."""
    in_force: dict[str, Entry] = {}
    for entry in entries:
        if entry.is_move or entry.kind == LIFT:
            in_force.pop(entry.after, None)
        if entry.kind == ROLLBACK:
            in_force[entry.before] = entry
    return in_force


def rollback_of(version: ModelVersion, entries: Sequence[Entry]) -> Entry | None:
    """The rollback in force from this version, or from one with the same files; None without one."""
    in_force, files = rollbacks(entries), files_of(entries)
    same = in_force.get(version.version)
    if not version.sha256 or (same and files.get(version.version, "") in ("", version.sha256)):
        return same
    return next((entry for before, entry in in_force.items() if files.get(before) == version.sha256), None)


def files_of(entries: Iterable[Entry]) -> dict[str, str]:
    """The hash of the files of each version that held the alias, by the entries of it; empty where there is none."""
    moves = [entry for entry in entries if entry.is_move]
    return {**{entry.before: "" for entry in moves}, **{entry.after: entry.sha256 for entry in moves}}


def earlier_holder(history: "History", alias: str, current: str) -> str:
    """The last holder before `current` that is still there and was not rolled back from; empty for none."""
    entries = history.entries(alias)
    refused, files = {current, "", *rollbacks(entries)}, files_of(entries)
    versions = dict.fromkeys(entry.before for entry in reversed(made(entries)) if entry.is_move)
    return next((each for each in versions if each not in refused and history.is_there(each, files[each])), "")
