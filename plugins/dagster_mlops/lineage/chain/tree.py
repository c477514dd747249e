"""A chain as a tree for any terminal, down to 80 columns of plain text."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from dagster_mlops.core.screens import conclusion
from dagster_mlops.core.terminal import line
from dagster_mlops.lineage.chain.walk import Link
from dagster_mlops.provenance import Dataset

_T = TypeVar("_T")
LOOKS = {
    "accessible": ("✓", "green"),
    "inaccessible": ("?", "yellow"),
    "deleted": ("✗", "red"),
    "faulty": ("!", "magenta"),
    "unknown": ("?", "yellow"),
}
_SOURCES = {
    "dagster": "known from Dagster's event log",
    "carried": "known only from a record downstream",
    "nowhere": "no record is left",
}
# From this many siblings of one asset on, they share a line; the JSON form has each of them.
_MANY = 4


def chain_tree(chain: Link) -> RenderableType:
    """The chain as a renderable, with a last line that counts the buckets.

    rich.print(chain_tree(trace(ref)))
    """
    seen = {chain.ref}
    root = Tree(_label([chain]), guide_style="dim")
    waiting: list[tuple[Tree, Sequence[Link]]] = [(root, chain.upstream)]
    while waiting:
        branch, links = waiting.pop()
        fresh = [link for link in links if link.ref not in seen]
        repeated = [link for link in links if link.ref in seen]
        seen.update(link.ref for link in fresh)
        below: list[tuple[Tree, Sequence[Link]]] = []
        for group in grouped(fresh, _family):
            upstream = {up.ref: up for link in group for up in link.upstream}
            below.append((branch.add(_label(group)), tuple(upstream.values())))
        if repeated:
            branch.add(Text(line(f"↑ shown elsewhere: {_names(repeated)}"), style="dim"))
        waiting.extend(reversed(below))
    return Group(root, Text(), _summary(chain))


def grouped(things: Iterable[_T], key: Callable[[_T], Any]) -> list[list[_T]]:
    """Things of one key together, if there are many."""
    groups: dict[Any, list[_T]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return [part for group in groups.values() for part in ([group] if len(group) >= _MANY else [[x] for x in group])]


def _family(link: Link) -> tuple[str, ...]:
    asset = link.record.dagster_asset if link.record else ""
    folder = asset or link.title.rpartition("/")[0] or str(link.ref)
    return link.ref.tool, link.ref.role, link.bucket, link.source, folder


def _label(links: Sequence[Link]) -> Text:
    first = links[0]
    mark, colour = LOOKS.get(first.bucket, ("!", "magenta"))
    label = Text.assemble((mark, colour), " ", (line(first.ref.role.replace("_", " ")), "bold"), " ")
    label.append(line(first.title if len(links) == 1 else _span(links)))
    if first.bucket != "accessible":
        label.append(line(f" {first.bucket.upper()}"), style=f"bold {colour}")
        label.append("\n" + line(first.reason or "no reason given"), style=colour)
        if len(links) > 1:
            label.append(line(f" (first of {len(links)} alike)"), style=colour)
        if first.bucket != "unknown":
            label.append("\n" + line(_SOURCES.get(first.source, "this is what the tool still knows")), style="italic")
    elif first.source != "tool":
        label.append("\n" + line(_SOURCES[first.source]), style="italic")
    if first.record:
        details = first.record.details() if len(links) == 1 else _totals(links)
        for text in (" · ".join(details), first.record.made_by() if len(links) == 1 else ""):
            if text:
                label.append("\n" + line(text), style="dim")
    return label


def _span(links: Sequence[Link]) -> str:
    names = sorted(link.title for link in links)
    return f"× {len(links)}: {names[0]} … {names[-1]}"


def _totals(links: Sequence[Link]) -> list[str]:
    datasets = [link.record for link in links if isinstance(link.record, Dataset)]
    rows, size = sum(d.rows or 0 for d in datasets), sum(d.bytes or 0 for d in datasets)
    assets = dict.fromkeys(link.record.dagster_asset for link in links if link.record and link.record.dagster_asset)
    return [
        *([f"{rows:,} rows"] if rows else []),
        *([f"{size / 1e6:,.1f} MB"] if size else []),
        *([f"asset {', '.join(assets)}"] if assets else []),
    ]


def _names(links: Iterable[Link]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for link in links:
        names[link.ref.role.replace("_", " ")].append(link.title)
    return ", ".join(
        f"{kind} {', '.join(titles)}" if len(titles) < _MANY else f"{len(titles)} × {kind} {titles[0]} …"
        for kind, titles in names.items()
    )


def _summary(chain: Link) -> Text:
    counts = Counter(link.bucket for link in chain.walk())
    counted = ", ".join(f"{count} {bucket}" for bucket, count in counts.most_common())
    yes = f"The chain is complete: all {counts.total()} links are accessible."
    return conclusion(chain.complete, yes, f"The chain is not complete: of {counts.total()} links {counted}.")
