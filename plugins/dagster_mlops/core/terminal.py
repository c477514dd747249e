"""Text for a terminal with data in it: data cannot move the cursor, change colours, or begin a line of its own."""

import re

# Controls, and what turns the direction of text or hides in it: https://trojansource.codes
_BREAKS = re.compile(r"\r\n|[\t\n\v\f\r\x85\u2028\u2029]")
_NEWLINES = re.compile(r"\r\n|[\n\v\f\x85\u2028\u2029]")
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def line(text: str) -> str:
    r"""Data in one line: a line break becomes a space, what cannot be seen its number.

    >>> line("late\r\n\x1b[32m✓ complete\u202e")
    'late \\x1b[32m✓ complete\\u202e'
    """
    return text if text.isascii() and text.isprintable() else _visible(_BREAKS.sub(" ", text))


def lines(text: str, *, indent: str = "") -> str:
    r"""A text of several lines, such as an error's message; those after the first one are indented.

    >>> lines("late\n\x1b[2Kdagster-mlops: fine", indent="  ")
    'late\n  \\x1b[2Kdagster-mlops: fine'
    """
    return f"\n{indent}".join(_visible(part.replace("\t", "    ")) for part in _NEWLINES.split(text))


def _visible(text: str) -> str:
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
