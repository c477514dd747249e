"""The stored form of a record: this version reads its own and every earlier one.

A record is a JSON object: ``schema``, ``of`` (the ref of the thing itself), ``upstream`` (more refs) and, beside them,
the facts. The class of a role declares its facts; a fact that this version does not know is kept as it is.
"""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dagster_mlops.errors import ProvenanceError

SCHEMA = 2
_DEPTH = 50  # of nested lists and objects; deeper ones would end Python's own readers and writers
_NAME = 10_000  # characters of a ref's parts

# Schema 1 had one class per tool, so its `kind` says both the tool and the role.
_TOOLS = {
    "commit": "git",
    "dataset": "dvc",
    "feature_view": "feast",
    "training_set": "feast",
    "training_run": "mlflow",
    "model_version": "mlflow",
    "bento": "bentoml",
    "deployment": "bentoml",
    "prediction": "bentoml",
    "drift_report": "evidently",
}
ROLES = {"bento": "package", "drift_report": "report"}  # also in keys of Dagster metadata
_FACTS = {"bento": "package"}


def upgrade(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any schema so far as one of this schema.

    Raises:
        ProvenanceError: The schema is a later one, or the record does not say what it is of.
    """
    schema = data.get("schema")
    if schema == 1 and not isinstance(schema, bool):
        return _upgrade_1(data)
    if schema != SCHEMA:
        raise ProvenanceError(
            f"The record has schema {short(schema)}, this version reads 1 to {SCHEMA}. Upgrade dagster-mlops."
        )
    of = data.get("of")
    if not isinstance(of, Mapping) or not isinstance(of.get("role"), str):
        raise ProvenanceError(f"The record is malformed: 'of' does not name a thing: {short(of)}.")
    return {key: value for key, value in data.items() if key != "schema"}


def _upgrade_1(data: Mapping[str, Any]) -> dict[str, Any]:
    kind = data.get("kind")
    if not isinstance(kind, str) or not kind:
        raise ProvenanceError(f"The record is malformed: its kind is {short(kind)}.")
    facts = {key: value for key, value in data.items() if key not in ("schema", "kind")}
    if kind not in _TOOLS:  # a user's own class, whose records did not have the tool or the id
        return {**facts, "of": {"tool": "", "role": kind, "id": ""}}
    return {**{_FACTS.get(key, key): value for key, value in facts.items()}, "of": upgrade_ref({"kind": kind})}


def upgrade_ref(data: Mapping[str, Any]) -> dict[str, Any]:
    """A stored ref of any schema as one of this schema."""
    if "kind" not in data or "role" in data:
        return dict(data)
    kind = data["kind"]
    if not isinstance(kind, str):
        raise ProvenanceError(f"The ref {short(data)} is malformed.")
    tool = {"tool": _TOOLS[kind]} if "tool" not in data and kind in _TOOLS else {}
    return {**{key: value for key, value in data.items() if key != "kind"}, **tool, "role": ROLES.get(kind, kind)}


def check_depth(value: Any) -> None:
    """Refuse a value that is nested so deeply that reading or writing it would be a RecursionError.

    Raises:
        ProvenanceError: It is too deep.
    """
    level = [value]
    for _ in range(_DEPTH):
        # Each part once: Python objects that share their parts would double at every level.
        level = list({id(part): part for value in level for part in _parts(value)}.values())
        if not level:
            return
    raise ProvenanceError(f"The record is nested more than {_DEPTH} levels deep.")


def _parts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def name(value: Any, what: str) -> str:
    """A part of a ref, which must be a short text.

    Raises:
        ProvenanceError: It is not.
    """
    if not isinstance(value, str) or len(value) > _NAME:
        raise ProvenanceError(f"A ref is malformed: its {what} is {short(value)}.")
    return value


def fact(value: Any, declared: Any, label: str) -> Any:
    """A stored fact as the type that its field declares: JSON has no tuples, and its writer may have had NumPy numbers.

    Raises:
        ProvenanceError: It is of another type.
    """
    try:
        return _reader(declared).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, (label, *problem["loc"])))
        raise ProvenanceError(f"The record is malformed: {path!r} is {short(problem['input'])}.") from error


# Compiled when the first fact of this type is read.
_reader = functools.cache(TypeAdapter)


def short(value: Any, most: int = 80) -> str:
    """A value in a message. A nested or huge one is described, not written out."""
    if isinstance(value, str):
        return repr(value if len(value) <= most else value[:most] + "…")
    if isinstance(value, Mapping):
        return f"an object of {len(value)} names"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"  # Python refuses to write out what has thousands of digits
    return repr(value)[:most]
