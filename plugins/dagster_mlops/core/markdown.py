"""Markdown with data in it: names, values and messages are shown as they are, and never read as Markdown or HTML.

Text for Dagster's and MLflow's pages is written with these functions only. They return :class:`Markdown`, which is the
only type that :func:`metadata` takes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.terminal import line, lines


class Markdown(str):
    """Text whose marks are meant as Markdown; a plain string is data, and will be escaped."""


# Everything that opens a span or an element, wherever it stands: https://spec.commonmark.org/0.31.2/#backslash-escapes
# An underscore within a word opens nothing. Addresses would become links by themselves.
_MARKS = re.compile(r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w)|:(?=//)|(?<=www)\.|(?<=\w)@(?=\w)")
_OPENING = re.compile(r"^(?=[-+](?:\s|[-\s]*$)|=+\s*$|#{1,6}(?:\s|$))|^(\d{1,9})(?=[.)](?:\s|$))")


def text(value: object) -> Markdown:
    r"""Data in one line, with every mark escaped.

    >>> text("[free](javascript:alert(1)) | <img onerror=…> of val_auc")
    '\\[free\\](javascript:alert(1)) \\| \\<img onerror=…\\> of val_auc'
    """
    if isinstance(value, Markdown):
        return value
    return Markdown(_OPENING.sub(r"\1\\", _MARKS.sub(r"\\\g<0>", line(str(value)).strip())))


def code(value: object) -> Markdown:
    """Data in one line of code.

    >>> code("models/`x`")
    '`` models/`x` ``'
    """
    content = line(str(value))
    fence = "`" * (_longest_run(content) + 1)
    space = " " if len(fence) > 1 or content[:1] == content[-1:] == " " else ""
    return Markdown(f"{fence}{space}{content}{space}{fence}" if content.strip() else "")


def block(value: object, language: str = "") -> Markdown:
    """Data in lines of code, such as a command and what it printed."""
    content = lines(str(value))
    fence = "`" * max(3, _longest_run(content) + 1)
    return Markdown(f"{fence}{language}\n{content}\n{fence}")


def formatted(template: str, *values: object) -> Markdown:
    """A template of ours with data in place of each ``{}``.

    >>> formatted("Predicts {} ({}).", code("late"), "a*b")
    'Predicts `late` (a\\\\*b).'
    """
    return Markdown(template.format(*(value if isinstance(value, int | float) else text(value) for value in values)))


def joined(parts: Iterable[object], separator: str = "\n\n") -> Markdown:
    """Those of the parts that are not empty, as paragraphs or lines."""
    return Markdown(separator.join(filter(None, map(text, parts))))


def table(rows: Sequence[Mapping[str, Any]]) -> Markdown:
    """Rows as a table.

    >>> print(table([{"metric": "auc", "value": "0.74"}]))
    | metric | value |
    |---|---|
    | auc | 0.74 |
    """
    header, *body = [
        f"| {' | '.join(text(cell) for cell in cells)} |" for cells in [rows[0].keys(), *(row.values() for row in rows)]
    ]
    return Markdown("\n".join([header, "|" + "---|" * len(rows[0]), *body]))


def image(title: str, address: str) -> Markdown:
    """An image of ours: the address is not escaped."""
    return Markdown(f"![{text(title)}]({address})")


def link(title: str, url: str) -> Markdown:
    """A link to a page on the web; the title alone where the address is not one."""
    if not re.fullmatch(r"https?://[^\s<>\\]+", url):
        return text(title)
    address = url.replace("(", "%28").replace(")", "%29")
    return Markdown(f"[{text(title)}]({address})")


def metadata(content: Markdown) -> dg.MarkdownMetadataValue:
    """The text as Dagster metadata."""
    return dg.MetadataValue.md(str(content))


def _longest_run(content: str) -> int:
    return max(map(len, re.findall("`+", content)), default=0)
