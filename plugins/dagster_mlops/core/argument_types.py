"""Arguments of a factory that are not of the type it names, refused where they are given rather than in a run."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

import dagster as dg
from pydantic import ConfigDict, TypeAdapter, ValidationError

Names = Sequence[str] | set[str] | frozenset[str]
"""Some names, in any order; a text is none."""
# The type of an error, and the values that are as good there: numpy's numbers, and the lists that YAML has for tuples.
_AS_GOOD: Mapping[str, type] = {
    "int_type": numbers.Integral,
    "float_type": numbers.Real,
    "tuple_type": list,
}
_NOISE = {"missing", "extra_forbidden", "unexpected_keyword_argument", "missing_argument", "arguments_type"}


def refuse_mistyped(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are not of the annotated type, empty texts, and numbers that are not finite.

        def alarm_asset(*, time: str, rows: int | None = None) -> dg.AssetsDefinition:
            refuse_mistyped(alarm_asset, locals())

    True is not taken for a number, nor a text for a list. A text may be empty where that is its default.

    Raises:
        DagsterInvalidDefinitionError: An argument is of another type.
    """
    faults = []
    for name, kind in _types(factory).items():
        value = arguments[name]
        if fault := _fault(kind, value):
            text = repr(value)
            faults.append(f"{name}={text if len(text) < 200 else text[:200] + '…'}: {fault}")
    if faults:
        raise dg.DagsterInvalidDefinitionError(f"{factory.__name__}: {'; '.join(faults)}.")


class _Kind(NamedTuple):
    hint: Any
    adapter: TypeAdapter[Any]
    may_be_empty: bool


def _fault(kind: _Kind, value: Any) -> str:
    if isinstance(value, str) and not value.strip() and not kind.may_be_empty:
        return "the text is empty"
    if hasattr(kind.hint, "_fields") and not isinstance(value, kind.hint):  # any tuple would do for pydantic
        return f"it should be a {kind.hint.__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return "the number is not finite"
    try:
        kind.adapter.validate_python(value)
    except ValidationError as error:
        errors = [each for each in error.errors(include_url=False) if not _is_as_good(each["type"], each["input"])]
        texts = [_text(each) for each in errors if each["type"] not in _NOISE]
        # A value that one type of a union takes but for its class has no error left for that one.
        return ", or ".join(dict.fromkeys(texts)) if len(errors) == error.error_count() else ""
    return ""


def _text(error: Any) -> str:
    is_text = error["type"] == "sequence_str"
    return "it is a text, not a list" if is_text else error["msg"].replace("Input should", "it should")


def _is_as_good(error: str, value: Any) -> bool:
    return isinstance(value, _AS_GOOD.get(error, ())) and not isinstance(value, bool)


@functools.cache
def _types(factory: Callable[..., Any]) -> dict[str, _Kind]:
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    hints = get_type_hints(factory, include_extras=True)
    return {
        parameter.name: _Kind(hint, TypeAdapter(hint, config=config), parameter.default == "")
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and (hint := hints[parameter.name]) is not Any
    }
