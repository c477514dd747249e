"""Parts of the screens that the commands print."""

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dagster_mlops.core.terminal import line


class Grid(Table):
    """A table in which a text is data: not rich's markup, and in one line."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add cells; a :class:`rich.text.Text` has its lines and styles already."""
        super().add_row(*(Text(line(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


def grid(*styles: str) -> Grid:
    """A table of columns without lines, each in its style, in which long texts go on below."""
    table = Grid(box=None, padding=(0, 2), collapse_padding=True, show_header=False, show_edge=False, pad_edge=False)
    for style in styles:
        table.add_column(style=style, overflow="fold")
    return table


def conclusion(good: bool, yes: str, no: str) -> Text:
    """The last line of a screen: what holds, in green, or what does not, in red."""
    return Text(line(f"✓ {yes}"), style="green") if good else Text(line(f"✗ {no}"), style="red")
