"""Examples on the pages of the docs."""

import re
from pathlib import Path
from typing import Any

import yaml

_DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str, *, after: str = "") -> list[str]:
    """The code of a page in a language; with `after`, below the first place of this text."""
    _, _, text = (_DOCS / page).read_text().partition(after) if after else ("", "", (_DOCS / page).read_text())
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def names(*code: str) -> dict[str, Any]:
    """The names that blocks of Python define, run one after the other."""
    namespace: dict[str, Any] = {}
    for block in code:
        exec(block, namespace)
    return namespace


def document(page: str, *, after: str = "") -> Any:
    """The first YAML document of a page."""
    return yaml.safe_load(blocks(page, "yaml", after=after)[0])
