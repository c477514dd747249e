"""Rollbacks in force: versions that were rolled back from, until a person lifts that or moves the alias there."""

from collections.abc import Iterable

from dagster_mlops.promotion.history.entry import LIFT, ROLLBACK, Entry


def rollbacks(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The rollbacks in force among the entries of one alias, oldest first, by the version that was rolled back from."""
    in_force: dict[str, Entry] = {}
    for entry in entries:
        if entry.is_move or entry.kind == LIFT:
            in_force.pop(entry.after, None)
        if entry.kind == ROLLBACK:
            in_force[entry.before] = entry
    return in_force
