"""Text for a terminal with data in it: data cannot move the cursor, change colours, or begin a line of its own."""

import re
import unicodedata

# Controls, and what turns the direction of text or hides in it: https://trojansource.codes
_BREAKS = re.compile(r"\r\n|[\t\n\v\f\r\x85\u2028\u2029]")
_NEWLINES = re.compile(r"\r\n|[\n\v\f\x85\u2028\u2029]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_JOINERS = "\u200c\u200d"  # of Persian, of Indian scripts and of emoji
# Letters and marks that are drawn as nothing, by Unicode's property Default_Ignorable_Code_Point, and an empty Braille.
_UNSEEN = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)


def line(text: str) -> str:
    r"""Data in one line: a line break becomes a space, what cannot be seen its number.

    >>> line("late\r\n\x1b[32m✓ complete\u202e")
    'late \\x1b[32m✓ complete\\u202e'
    """
    return text if text.isascii() and text.isprintable() else _visible(_BREAKS.sub(" ", text))


def is_utf8(text: str) -> bool:
    r"""False for a text with bytes that are not UTF-8, which Python has from a command line as lone surrogates.

    >>> is_utf8("Zürich"), is_utf8("Z\udcfcrich")
    (True, False)
    """
    return text.isascii() or not _SURROGATES.search(text)


def error_line(error: Exception) -> str:
    r"""An error in one line: its type, and the first line of its message, before a database quotes its statement.

    >>> error_line(OSError("database or disk is full\n[SQL: INSERT …]"))
    'OSError: database or disk is full'
    """
    return f"{type(error).__name__}: {line(next(iter(str(error).splitlines()), ''))[:500]}"


def lines(text: str, *, indent: str = "") -> str:
    r"""A text of several lines, such as an error's message; those after the first one are indented.

    >>> lines("late\n\x1b[2Kdagster-mlops: fine", indent="  ")
    'late\n  \\x1b[2Kdagster-mlops: fine'
    """
    return f"\n{indent}".join(_visible(part.replace("\t", "    ")) for part in _NEWLINES.split(text))


def _visible(text: str) -> str:
    return "".join(char if _is_seen(char) else char.encode("unicode_escape").decode() for char in text)


def _is_seen(char: str) -> bool:
    if char.isprintable():
        return char.isascii() or not _UNSEEN.match(char)
    return char in _JOINERS or unicodedata.category(char) == "Zs"
