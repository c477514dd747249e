"""Finder of credentials in text: one pass over the table of forms."""

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dagster_mlops.core import credential_forms as table

_SHORTEST_FORM = 12  # characters
_LONG = 1000
_PASSES = 8


class Span(NamedTuple):
    """A part of a text that is a credential.

    `secret` is the credential in it: a part of an address begins with the user. `name` is that of the value, or of the
    form. `by` is the separator between name and value, or the kind of form: ``form``, ``prefix`` or ``address``.
    `quoted` is true for a value with clear ends.
    """

    start: int
    stop: int
    secret: str
    name: str
    by: str = "form"
    quoted: bool = True


_regex = functools.cache(re.compile)  # each when it is first used: compiling all would double the time of the import


@functools.cache
def _pair() -> re.Pattern[str]:
    separators = "|".join(f"(?P<{form.name}>{form.pattern})" for form in table.SEPARATORS)
    kinds = f"(?P<secret>{table.SECRET})|(?P<header>{table.HEADER})|(?P<query>{table.QUERY})"
    return re.compile(rf"(?i)[\w.\-]*?(?:{kinds})(?![\w.\-])(?:{separators})")


@functools.cache
def _part_of_name() -> re.Pattern[str]:
    return re.compile(f"(?i){'|'.join(table.PARTS_OF_NAMES)}")


@functools.cache
def _hint() -> re.Pattern[str]:
    return re.compile("|".join(re.escape(hint) for form in table.FORMS for hint in form.hints))


def is_secret(name: str, value: str) -> bool:
    """True if a value of this name is a credential.

    >>> is_secret("db_password", "x"), is_secret("password", "env:NAME"), is_secret("pad_token", "[PAD]")
    (True, False, False)
    """
    lower = name.lower()
    return (
        any(part in lower for part in table.PARTS_OF_NAMES)
        and _regex(rf"(?i)[\w.\- ]*(?:{table.SECRET})").fullmatch(name) is not None
        and not _is_harmless(name, value)
    )


def is_password(name: str) -> bool:
    """True if a value of this name may be a plain word."""
    return _regex(f"(?i){table.PASSWORD}").search(name) is not None


def is_word(name: str, value: str) -> bool:
    """True for a plain word, or a number, under a name that asks for more."""
    return not is_password(name) and _regex(table.WORD).fullmatch(value) is not None


def fixpoint(change: Callable[[str], str], text: str) -> str:
    """The text changed until nothing changes: what is left may have a form of its own, so masking twice is once."""
    for _ in range(_PASSES):
        if (changed := change(text)) == text:
            break
        text = changed
    return text


def spans(text: str) -> list[Span]:
    """The credentials of a text, in order; some may overlap."""
    credentials: list[Span] = []
    if "@" in text and ":" in text:
        if "://" in text or ":\\/\\/" in text:
            credentials += _of_addresses(text)
        if _regex(table.HOST_AND_PORT).search(text):
            matches = _regex(table.WITHOUT_SCHEME).finditer(text)
            credentials += [Span(m.start(1), m.end(1), m[1], "password of an address", "address") for m in matches]
    if _regex(r"[=:\s,>|%]").search(text):
        lower = text.lower()
        for part in table.PARTS_OF_NAMES:
            if part in lower:
                credentials += _of_pairs(text, credentials)
                break
    # One pattern of all hints is quicker for a short text, and each of them by itself for a long one.
    if len(text) >= _SHORTEST_FORM and (len(text) > _LONG or _hint().search(text)):
        credentials += _of_forms(text)
    return sorted(credentials)


def _of_forms(text: str) -> Iterator[Span]:
    for name, hints, pattern, *_ in table.FORMS:
        for hint in hints:
            if hint in text:
                for match in _regex(pattern).finditer(text):
                    group = match.lastindex or 0
                    yield Span(match.start(group), match.end(group), match[group], name, "form" if group else "prefix")
                break


def _words(text: str) -> Iterator[int]:
    """Starts of the words that have a part of a name in them."""
    end = 0
    for hit in _part_of_name().finditer(text):
        start = hit.start()
        if start >= end:
            while start > end and (text[start - 1] in "_-." or text[start - 1].isalnum()):
                start -= 1
            yield start
            end = _regex(r"[\w.\-]*").match(text, hit.end()).end()  # pyright: ignore[reportOptionalMemberAccess]


def _of_pairs(text: str, addresses: list[Span]) -> Iterator[Span]:
    end, later_addresses = 0, deque(sorted(addresses))
    for start in _words(text):
        while later_addresses and later_addresses[0].stop <= start:
            later_addresses.popleft()
        if start < end or (later_addresses and later_addresses[0].start <= start):
            continue
        match = _pair().match(text, start)
        if match is None:
            continue
        by = match.lastgroup or ""
        name = text[start : match.start(by)]
        if not _belongs(match, name, by):
            continue
        for first, last, quoted in _values(match, name, by):
            value = text[first:last]
            is_harmless = _is_harmless(name, value) or (by == "item" and is_secret(value, name))
            if by == "block" or not is_harmless:
                end = last
            if value and not is_harmless:
                yield Span(first, last, value.rpartition(" ")[2] if match["header"] else value, name, by, quoted)


def _belongs(match: re.Match[str], name: str, by: str) -> bool:
    """True if what follows the name may be its value."""
    text, start, after = match.string, match.start(), match.end()
    before = text[start - 1] if start else ""
    if match["query"]:
        return match[by] == "=" and _in_query(match, name, before)
    match by:
        case "tag":
            return before == "<"
        case "item":
            opening = text[max(0, start - 3) : start].rstrip("\"'").removesuffix("b")[-1:]
            return name.startswith("--") or opening == "(" or (opening == "[" and "-" in name)  # a header
        case "line":
            return name.startswith("--")
        case "spaced":
            if name.startswith("--") or name.lower() in ("requirepass", "masterauth"):
                return True
            quote = _regex(r"([\"'])(?!\1)").match(text, after)  # of SQL
            return quote is not None and (name.lower() == "password" or (name.isupper() and quote[0] == "'"))
        case "cell":
            row = text[text.rfind("\n", max(0, start - 200), start) + 1 : start].strip()
            return row.startswith("|") and "|" not in row[1:]
        case _:
            # Not a scheme, and not a folder of a partition, such as token=a/part.parquet
            is_scheme = match[by].startswith(":") and text.startswith("//", after)
            return not is_scheme and not (before == "/" and match[by] == "=")


def _in_query(match: re.Match[str], name: str, before: str) -> bool:
    if before in ("?", "&", "#", ";") or name.lower() == "sig":
        return True
    value = _regex(table.SHORT).match(match.string, match.end())
    if value is None:
        return False
    followed = _regex(r"&[\w.\-]{1,40}=").match(match.string, value.end()) is not None
    # A connection string: h:6379,key=… Words and hashes in such a place are columns and content.
    return followed or (before == "," and not _regex(rf"{table.WORD}|[0-9a-f]*").fullmatch(value[0]))


def _values(match: re.Match[str], name: str, by: str) -> Iterator[tuple[int, int, bool]]:
    """Start and end of each value, and true if its ends are clear."""
    text, after = match.string, match.end()
    before = text[match.start() - 1] if match.start() else ""
    if by in ("block", "below"):
        yield from _of_lines(match, name, by)
    elif by == "cell":
        if value := _regex(table.IN_CELL).match(text, after):
            yield from [] if _regex(table.WORD).fullmatch(value[1]) else [(*value.span(1), True)]
    elif value := _regex(table.QUOTED).match(text, after):
        # A value is on one line, or each line is one.
        group = next(group for group in ("lines", "text", "inner") if value[group] is not None)
        for line in _regex(r"[^\n]+").finditer(text, *value.span(group)):
            first, last = _stripped(line[0], line.start()) if group == "lines" else line.span()
            yield first, last, True
    elif by == "line":
        if value := _regex(table.ALONE).match(text, after):
            yield *value.span(1), text[value.start(1) - 1] in ("'", '"')
    elif match["header"]:
        if value := _regex(table.TO_THE_QUOTE[before if before in ("'", '"') else ""]).match(text, after):
            yield *value.span(), before in ("'", '"')
    elif value := (by in ("element", "tag") and _regex(table.IN_ELEMENT).match(text, after)) or (
        "=" in match[by] and _regex(table.BRACES).match(text, after)
    ):
        yield *value.span(), by in ("element", "tag")
    elif value := _regex(table.LIST).match(text, after):
        for part in _regex(table.IN_LIST).finditer(text, value.start() + 1, value.end() - 1):
            yield *part.span("text" if part["quote"] else 0), bool(part["quote"])
    elif ":" in match[by] and _regex(rf"{table.PROSE}|{table.OBJECT}").match(text, after):
        return
    elif value := _regex(table.UNQUOTED_QUERY if before in ("?", "&", "#") else table.UNQUOTED).match(text, after):
        yield *value.span(), False


def _of_lines(match: re.Match[str], name: str, by: str) -> Iterator[tuple[int, int, bool]]:
    """The lines of a block of YAML, or values that stand below their name."""
    text = match.string
    start = text.rindex("\n", 0, match.end()) + 1
    indent = text[start : match.end()].removesuffix("- ")
    while start < len(text):
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
        line = text[start:stop]
        if line.strip() and not line.startswith(indent):
            return
        first, last = _stripped(line, start)
        if by == "block":
            yield first, last, False
        elif value := _regex(table.ALONE).match(text, first + 2 * text.startswith("- ", first)):
            if value[1].endswith(":") or is_word(name, value[1]):
                return
            yield *value.span(1), text[value.start(1) - 1] in ("'", '"')
        else:
            return
        start = stop + 1


def _stripped(line: str, start: int) -> tuple[int, int]:
    """Start and end of a line, which begins at `start`, without the space around it."""
    return start + len(line) - len(line.lstrip()), start + len(line.rstrip())


def _is_harmless(name: str, value: str) -> bool:
    name, word = name.lower(), value.strip(" )]}.,;:|")
    if _regex(table.VARIABLE).match(value) or _regex(table.HARMLESS).fullmatch(word):
        return True
    # An option's metavariable, another option, and the name of a variable.
    if word.lower() == name.lstrip("-") or (name.startswith("--") and value.startswith("--")):
        return True
    if word.isupper() and "_" in word and _regex(rf"(?i)[\w]*(?:{table.SECRET})").fullmatch(word):
        return True
    if name == "pass":  # a count of tests
        return value.isdigit() and len(value) < 6
    if name == "code":  # of a country, a status or a product
        return len(value) < 6 or value.isdigit() or value.isalpha()
    if name.endswith("key") and _regex(table.KEY_FILE).fullmatch(value):
        return True
    return value.startswith(("/", "./", "~/")) and name.rstrip("s").endswith("credential")


def _of_addresses(text: str) -> Iterator[Span]:
    for region in _regex(table.ADDRESS).finditer(text):
        start, end = region.span(1)
        # A list of URLs may have no spaces.
        while (following := text.find("://", start, end)) >= 0:
            yield from _of_address(text, start, following)
            start = following + 3
        yield from _of_address(text, start, end)


def _of_address(text: str, start: int, end: int) -> Iterator[Span]:
    rest = text[start:end]
    if "@" not in rest:
        return
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    is_web = text[max(0, start - 8) : start].lower().endswith(("http://", "https://"))
    user, colon, password = authority.partition(":")
    at = authority.rfind("@")
    if not colon or "@" in user:
        # Alone before the @ stands a token in web addresses, elsewhere a user, a container (abfss) or a bucket
        # (s3://name@v1).
        cut = at if is_web else -1
    elif at < 0 and ("[" in user or _regex(table.PORT).match(password)):
        return
    else:
        # Databases take a password with a slash or an @ as it is.
        ats = [match.start() for match in re.finditer("@", rest)]
        hosts = [place for place in ats if _regex(table.HOST).match(rest, place + 1)]
        cut = hosts[-1] if hosts else ats[-1]
    if cut > 0 or (cut == 0 and is_web):
        _, colon, secret = rest[:cut].partition(":")
        name = f"{'password' if colon else 'token'} of an address"
        yield Span(start, start + cut, secret or rest[:cut], name, "address")
