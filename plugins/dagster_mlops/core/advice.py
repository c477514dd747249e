"""Advice about an error of a tool, from the tool's table of remedies."""

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(eq=False, repr=False)  # tables of them are made whenever a tool's folder is imported
class Advice:
    """A remedy, and the errors that it is for; without a pattern and types it is for every error.

    `pattern` is a regular expression for the message. `types` are names of error classes, with the module's first name
    where the class's own is not enough, and of error numbers, separated by spaces. In `remedy`, ``{0}`` is the
    pattern's first group, ``{error.…}`` an attribute of the error, and other names are what the caller adds; a function
    takes the groups and these names.
    """

    remedy: str | Callable[..., str]
    pattern: str = ""
    types: str = ""
    link: str = ""  # the tool's own page about it

    def about(self, error: BaseException | str, **names: str) -> str | None:
        """The remedy for an error; None if it is for others."""
        match = re.search(self.pattern, str(error)) if self.pattern or not self.types else None
        if not match and not set(self.types.split()) & set(_names(error)):
            return None
        groups = match.groups() if match else ()
        remedy = self.remedy
        text = remedy.format(*groups, error=error, **names) if isinstance(remedy, str) else remedy(*groups, **names)
        return f"{text} See {self.link}" if self.link else text


def advice(error: BaseException | str, table: Sequence[Advice], **names: str) -> str:
    """The first remedy of a table for an error or, failing that, for what caused it; empty if there is none.

    >>> remedies = [Advice("Free some space.", types="ENOSPC"), Advice("Run: pip install {0}.", "requires '(.+)'")]
    >>> advice(OSError(28, "No space left on device"), remedies)
    'Free some space.'
    >>> advice("the remote requires 'dvc-s3'", remedies)
    'Run: pip install dvc-s3.'
    """
    chain = causes(error) if isinstance(error, BaseException) else [error]
    answers = (entry.about(link, **names) for link in chain for entry in table)
    return next((answer for answer in answers if answer is not None), "")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _names(error: BaseException | str) -> Iterator[str]:
    """The names by which a table can mean an error: its class, its built-in base classes, its error number."""
    if isinstance(error, str):
        return
    kind = type(error)
    yield kind.__name__
    yield f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    yield from (base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
    if isinstance(error, OSError) and error.errno is not None:
        yield errno.errorcode.get(error.errno, "")
