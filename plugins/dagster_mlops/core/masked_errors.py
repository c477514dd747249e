"""Errors whose causes have their credentials masked, however they reach a log, Dagster's pages or a terminal."""

import operator
import sys
import threading
from collections.abc import Callable
from typing import Any


def _link(name: str) -> Any:
    link = vars(BaseException)[name]
    return property(lambda error: masked_error(link.__get__(error)), link.__set__)


class MaskedError(BaseException):
    """An error whose message, notes, cause and context, which tracebacks show, have their credentials masked."""

    __cause__ = _link("__cause__")
    __context__ = _link("__context__")

    def __init__(self, *args: object) -> None:
        super().__init__(*(_masked(part) if isinstance(part, str) else part for part in args))

    def __str__(self) -> str:
        return _masked(super().__str__())  # of an error, or another value, that was given instead of a text

    def add_note(self, note: str) -> None:
        super().add_note(_masked(note))


def _masked(text: str) -> str:
    # Records need these errors, and the mask is a part of their package.
    from dagster_mlops.provenance.credentials import mask_credentials

    return mask_credentials(text)


def _settle(error: BaseException | None, _seen: frozenset[int] = frozenset()) -> None:
    """Replace what the errors of this chain were raised from with what they show."""
    if error is None or id(error) in _seen:
        return
    if isinstance(error, MaskedError):
        is_hidden = error.__suppress_context__
        error.__cause__, error.__context__ = error.__cause__, error.__context__
        error.__suppress_context__ = is_hidden
    for below in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _settle(below, _seen | {id(error)})


def _after_settling(hook: Callable[..., Any], error_of: Callable[..., BaseException | None]) -> Callable[..., Any]:
    def settled(*arguments: Any) -> Any:
        _settle(error_of(*arguments))
        return hook(*arguments)

    return settled


if sys.version_info < (3, 13):  # There the printer of errors that nothing catches does not ask for attributes.
    sys.excepthook = _after_settling(sys.excepthook, lambda _, error, __: error)
    threading.excepthook = _after_settling(threading.excepthook, lambda arguments: arguments.exc_value)


def _copy(error: BaseException, text: str, arguments: tuple[Any, ...]) -> Any:
    """An error of the same kind and name that shows this text."""
    kind: Any = type(error)
    names = {"__str__": lambda _: text, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    try:
        # A syntax error is shown by its fields.
        base: Any = Exception if isinstance(error, SyntaxError) else kind
        return base.__new__(type(kind.__name__, (base,), names), *arguments)
    except TypeError:  # pydantic's, for one, is made of other arguments
        return type(kind.__name__, (Exception,), names)(text)


def masked_error(error: BaseException | None, _above: frozenset[int] = frozenset()) -> Any:
    """The error; if it or what it was raised from shows a credential, a copy of its kind that shows a mask instead."""
    if error is None or isinstance(error, MaskedError) or id(error) in _above:
        return error
    text, notes = str(error), getattr(error, "__notes__", [])
    below = [error.__cause__, error.__context__, *(error.exceptions if isinstance(error, BaseExceptionGroup) else ())]
    masked_below = [masked_error(cause, _above | {id(error)}) for cause in below]
    masked, masked_notes = _masked(text), [_masked(str(note)) for note in notes]
    if masked == text and masked_notes == notes and all(map(operator.is_, below, masked_below)):
        return error
    is_group = isinstance(error, BaseExceptionGroup)
    copy = _copy(error, masked, (_masked(error.message), masked_below[2:]) if is_group else (masked,))
    if isinstance(error, OSError) and isinstance(copy, OSError):
        copy.errno = error.errno  # remedies are found by it
    copy.__cause__, copy.__context__, copy.__suppress_context__ = *masked_below[:2], error.__suppress_context__
    copy.__notes__ = masked_notes
    return copy.with_traceback(error.__traceback__)
