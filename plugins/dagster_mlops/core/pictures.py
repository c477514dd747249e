"""Small pictures that Dagster shows inline; one that cannot be drawn becomes a line with the reason."""

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import shorten
from dagster_mlops.errors import MissingExtraError
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:
    Axes = Figure = Any

MOST_BYTES = 60_000
"""The longest a picture may be as text: Dagster keeps it in its event log and sends it with the asset's page."""

_MOST_CONTENT = MOST_BYTES * 3 // 4  # base64 makes four bytes of three
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"<": "svg+xml"}


@dataclass(frozen=True)
class Picture:
    """A picture, or why there is none.

    >>> Picture(title="ROC", problem="ValueError: nothing to draw").markdown()
    'ROC is not drawn: `ValueError: nothing to draw`'
    """

    title: str
    content: bytes = b""
    problem: str = ""

    def markdown(self) -> markdown.Markdown:
        """The picture inline; empty if there is nothing to show. Dagster has no metadata type for images."""
        if self.problem:
            return markdown.formatted("{} is not drawn: {}", self.title, markdown.code(self.problem))
        if not self.content:
            return markdown.Markdown()
        kind = next((kind for start, kind in _KINDS.items() if self.content.startswith(start)), "png")
        return markdown.image(self.title, f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}")


def drawn(title: str, draw: "Callable[[], Figure | bytes | None]", *, tool: str) -> Picture:
    """The figure or image file that `draw` returns, made small enough; whatever `draw` raises is the problem.

    A picture never costs the step or check that made it.

    Args:
        title: Text to read in place of the picture.
        draw: Draws a figure, or reads an image file; None if there is nothing to draw.
        tool: Extra that brings matplotlib.
    """
    try:
        figure = draw()
        if figure is None:
            return Picture(title)
        content = _small(figure if isinstance(figure, bytes) else _png(figure), tool)
    except Exception as error:  # noqa: BLE001 - see above
        return failed(title, error)
    if not 0 < len(content) <= _MOST_CONTENT:
        return Picture(title, problem=f"it has {len(content):,} bytes, and up to {_MOST_CONTENT:,} can be shown")
    return Picture(title, content)


def failed(title: str, error: Exception) -> Picture:
    """The line in place of a picture that raised `error`."""
    reason = str(error) if isinstance(error, MissingExtraError) else f"{type(error).__name__}: {error}"
    return Picture(title, problem=mask_credentials(reason)[:500])


def gallery(pictures: Iterable[Picture]) -> dg.MarkdownMetadataValue | None:
    """Pictures below each other as one metadata value; None if there is nothing to show."""
    text = markdown.joined(picture.markdown() for picture in pictures)
    return markdown.metadata(text) if text else None


def new_figure(width: float, height: float, *, tool: str, layout: str | None = "constrained") -> "Figure":
    """A figure of matplotlib in inches that no user interface has to close.

    Without a `layout`, :func:`set_margins` gives it one, at half the cost: matplotlib draws a figure twice to find it.
    """
    return extra("matplotlib.figure", extra=tool).Figure(figsize=(width, height), layout=layout)


def set_margins(figure: "Figure", *, left: float, between: float, rows: int = 1, columns: int = 1) -> None:
    """Give a figure of `rows` and `columns` margins in inches.

    Args:
        figure: A figure without a layout.
        left: Room for labels and numbers left of the first column.
        between: The same, left of the other columns.
        rows: Number of rows of axes.
        columns: Number of columns.
    """
    below, above, right = 0.55, 0.35, 0.2
    width, height = figure.get_size_inches()
    axis_width = (width - left - right - between * (columns - 1)) / columns
    axis_height = (height - below - above - (below + above) * (rows - 1)) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=below / height,
        top=1 - above / height,
        wspace=between / axis_width,
        hspace=(below + above) / axis_height,
    )


def label(value: Any, length: int = 14) -> str:
    r"""A short text for a figure: only what matplotlib's font can draw, and without its mathematics.

    >>> label("price in $ of a pair")
    'price in \\$ o…'
    """
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in str(value)).replace("$", r"\$")
    return shorten(text, length)


def _png(figure: "Figure") -> bytes:
    return _first_small((100, 80, 60, 40), lambda file, dpi: figure.savefig(file, format="png", dpi=dpi))


def _small(content: bytes, tool: str) -> bytes:
    if len(content) <= _MOST_CONTENT:
        return content
    image = extra("PIL.Image", extra=tool).open(io.BytesIO(content)).convert("RGB")

    def save(file: io.BytesIO, side: int) -> None:
        image.thumbnail((side, side))
        image.quantize(64).save(file, format="PNG", optimize=True)

    return _first_small((800, 500, 300, 150), save)


def _first_small(sizes: Iterable[int], save: Callable[[io.BytesIO, int], object]) -> bytes:
    """The file of the first size that can be shown, else of the last."""
    content = b""
    for size in sizes:
        file = io.BytesIO()
        save(file, size)
        content = file.getvalue()
        if len(content) <= _MOST_CONTENT:
            break
    return content
