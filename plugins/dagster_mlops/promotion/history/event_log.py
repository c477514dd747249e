"""The history in Dagster's event log: each promotion brings the entries that the log lacks, and the head."""

import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.promotion.history.log import History

HISTORY = "history"
"""End of a metadata key, after the registry's name: ``{"model": …, "history": …, "at": place, "first": number,
"entries": […], "head": …}``, as code in Markdown: its lines are long, and would make the table of the asset's page
wider than the page. Of two registries with a model of one name, ``history`` and ``at`` say which one it is of."""
_PAGE = 500  # events
_AT_ONCE = 200  # entries in one event
_BEHIND_A_LINK = 1000  # characters from which Dagster's UI shows Markdown when someone asks for it


def identity(first: str) -> str:
    """The identity of a history, wherever its registry is: the hash of its first entry; empty without one."""
    return hashlib.sha256(first.encode()).hexdigest()[:32] if first else ""


def identity_in(part: Mapping[str, Any]) -> str:
    """The identity of the history that a part is of; empty where an earlier version of this library wrote the part."""
    return part.get("history") or (identity(part["entries"][0]) if part["entries"] and not part["first"] else "")


class Mirror:
    """The entries and heads of a model that the events of a promotion asset bring."""

    def __init__(self, instance: dg.DagsterInstance, key: dg.AssetKey, tool: str, model: str) -> None:
        self.instance, self.key, self.tool, self.model = instance, key, tool, model

    def _parts(self, *, observed: bool) -> Iterator[Mapping[str, Any]]:
        """The parts that events bring, newest first."""
        fetch = self.instance.fetch_observations if observed else self.instance.fetch_materializations
        cursor, has_more = None, True
        while has_more:
            page = fetch(self.key, limit=_PAGE, cursor=cursor)
            cursor, has_more = page.cursor, page.has_more
            for record in page.records:
                event = record.event_log_entry.asset_materialization or record.event_log_entry.asset_observation
                for tool, part in parts_in(event.metadata if event else {}):
                    if (tool, part["model"]) == (self.tool, self.model):
                        yield part

    @functools.cached_property
    def parts(self) -> list[Mapping[str, Any]]:
        """All parts."""
        return [*self._parts(observed=False), *self._parts(observed=True)]

    def history(self, identities: Collection[str] = ()) -> dict[int, list[str]]:
        """The texts by number: several where events differ, the newest first. Of these histories, or of all."""
        texts: dict[int, list[str]] = {}
        for part in self._of(identities):
            for number, text in enumerate(part["entries"], part["first"]):
                if text not in texts.setdefault(number, []):
                    texts[number].append(text)
        return texts

    def heads(self, identities: Collection[str] = ()) -> list[str]:
        """The heads, newest first. Of these histories, or of all."""
        return [part["head"] for part in self._of(identities) if part["head"]]

    def _of(self, identities: Collection[str]) -> Iterator[Mapping[str, Any]]:
        """The parts of these histories, or all; one that names none is of those that other events of its asset name."""
        names = {identity_in(part) for part in self.parts} - {""}
        keys = {*identities, *([] if names.isdisjoint(identities) and names else [""])}
        return (part for part in self.parts if not identities or identity_in(part) in keys)

    def size(self, history: str = "") -> int:
        """The number of entries that the log has, by its newest events; of the history with this identity, if given."""
        parts = [self._parts(observed=observed) for observed in (False, True)]
        newest = (
            next((part for part in each if not history or identity_in(part) in ("", history)), None) for each in parts
        )
        return max((part["first"] + len(part["entries"]) for part in newest if part), default=0)

    def missing(self, history: History, place: str) -> list[dict[str, Any]]:
        """The parts that the log lacks, in order; the last one also where it lacks none, for its head."""
        of = identity(next(iter(history.texts), ""))
        first, head = min(self.size(of), len(history.texts)), history.head()
        starts = range(first, len(history.texts), _AT_ONCE) or [first]
        return [
            {
                "model": self.model,
                "history": of,
                "at": place,
                "first": start,
                "entries": list(history.texts[start : start + _AT_ONCE]),
                "head": head if start == starts[-1] else "",
            }
            for start in starts
        ]


def mirror(
    context: dg.AssetExecutionContext, tool: str, history: History, place: str
) -> dict[str, dg.MarkdownMetadataValue]:
    """Bring what the event log lacks: the last part as metadata of this materialization, others as observations.

    `place` is that of the registry, for commands: an alias that no version holds yet has no record that says so.
    """
    *earlier, last = Mirror(context.instance, context.asset_key, tool, history.model).missing(history, place)
    for part in earlier:
        context.log_event(dg.AssetObservation(context.asset_key, metadata=part_metadata(tool, part)))
    return part_metadata(tool, last)


def mirror_now(instance: dg.DagsterInstance, key: dg.AssetKey, tool: str, history: History, place: str = "") -> None:
    """Bring what the event log lacks by observations of a promotion asset, outside of its runs."""
    for part in Mirror(instance, key, tool, history.model).missing(history, place):
        instance.report_runless_asset_event(dg.AssetObservation(key, metadata=part_metadata(tool, part)))


def part_metadata(tool: str, part: Mapping[str, Any]) -> dict[str, dg.MarkdownMetadataValue]:
    """The metadata of an event that brings a part."""
    return {f"{tool}/{HISTORY}": markdown.metadata(markdown.block(json.dumps(dict(part)).ljust(_BEHIND_A_LINK)))}


def parts_in(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts that an event brings, each with the name of its registry."""
    for key, value in metadata.items():
        tool, _, end = key.rpartition("/")
        if end == HISTORY and _is_part(part := _json(str(getattr(value, "value", "")))):
            yield tool, part


def _json(text: str) -> Any:
    try:
        return json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):  # not ours
        return None


def _is_part(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(value, dict)
        and isinstance(value.get("model"), str)
        and type(value.get("first")) is int
        and isinstance(value.get("entries"), list)
        and all(isinstance(text, str) for text in value["entries"])
        and all(isinstance(value.get(name, ""), str) for name in ("history", "at"))
        and isinstance(value.get("head"), str)
    )
