"""Records and refs, and their stored form."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar, TypeVar

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ProvenanceError
from dagster_mlops.provenance import schema
from dagster_mlops.provenance.credentials import current_mask

NAMESPACE = "dagster_mlops"

_R = TypeVar("_R", bound="Record")
_CLASSES: dict[str, type["Record"]] = {}
_RESERVED = {"schema", "tool", "of", "upstream", "tool_facts"}
_UNKNOWN = "unknown"
_MOST = 6  # facts of many that a text has
_EMPTY = ("", None, (), [], {})


@lazy_dataclass(frozen=True, order=True)
class Ref:
    """Names one thing in one tool, well enough to ask for it months later from another process.

    `tool` is the name of a tool (entry-point group ``dagster_mlops.tools``), `role` what the thing is in a model's
    life, `id` the tool's own identifier and `at` where the tool keeps it: a tracking URI, a repository, a model store.
    Credentials in `id` and `at` are masked.

    >>> str(Ref("mlflow", "model_version", "delay/3", at="sqlite:///mlflow.db"))
    'mlflow:model_version:delay/3'
    """

    tool: str
    role: str
    id: str
    at: str = ""

    def __post_init__(self) -> None:
        mask = current_mask()
        object.__setattr__(self, "id", mask(self.id))
        object.__setattr__(self, "at", mask(self.at))

    def __str__(self) -> str:
        return f"{self.tool}:{self.role}:{self.id}"

    @classmethod
    def unknown(cls, role: str, id: str) -> "Ref":
        """A ref of what was there and is on no record, so that no tool can be asked for it.

        >>> str(Ref.unknown("asset", "churn/training_set"))
        'unknown:asset:churn/training_set'
        """
        return cls(_UNKNOWN, role, id)

    @property
    def is_unknown(self) -> bool:
        """True for a ref that :meth:`unknown` made."""
        return self.tool == _UNKNOWN

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types."""
        return {"tool": self.tool, "role": self.role, "id": self.id, "at": self.at}

    @staticmethod
    def from_dict(data: Any) -> "Ref":
        """Read what :meth:`to_dict` wrote, in this version or one before.

        Raises:
            ProvenanceError: `data` is not a ref.
        """
        if not isinstance(data, Mapping):
            raise ProvenanceError(f"A ref is malformed: {schema.short(data)}.")
        parts = {"at": "", **schema.upgrade_ref(data)}
        return Ref(*(schema.name(parts.get(part), part) for part in ("tool", "role", "id", "at")))


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """One step of a model's life. Subclasses are its roles and name the facts; `ref` names the thing itself.

    The tool is data: a second tracker writes a ``TrainingRun(tool="wandb", …)``. Facts that only this tool has go into
    `tool_facts`, and show as metadata under the tool's name. So do facts of a later version, and all facts of a record
    with an unknown role, which is a plain `Record`: they are kept, shown and written back.

    Credentials (in a tracking URI, a repository, params) are masked, because a record is copied into metadata,
    tags and logs.

    >>> raw = Dataset(path="raw/flights.parquet", md5="9f…", repo="/data", rows=336776, tool_facts={"branch": "main"})
    >>> Record.from_json(raw.to_json()) == raw
    True
    >>> Record(of=Ref("iceberg", "table", "db.flights@5"), tool_facts={"snapshot": 5}).details()
    ['snapshot=5']
    """

    role: ClassVar[str] = ""
    _made_from: ClassVar[str] = ""  # the role, besides a commit, of what such a thing is always made from
    _id: ClassVar[str] = ""  # `id` and `at` of the ref, from the facts
    _at: ClassVar[str] = ""

    tool: str = ""
    of: Ref | None = None  # the thing itself, if its id does not follow from the facts
    upstream: tuple[Ref, ...] = ()
    dagster_run_id: str = ""
    dagster_asset: str = ""
    dagster_partition: str = ""
    tool_facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init_subclass__(
        cls, *, role: str = "", id: str = "", at: str = "", made_from: str = "", **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls._made_from = made_from or cls._made_from
        cls.role, cls._id, cls._at = role or cls.role, id or cls._id, at or cls._at
        if cls.role:
            # Records of a role are read as its first class, which a second one cannot replace.
            _CLASSES.setdefault(cls.role, cls)

    def __post_init__(self) -> None:
        mask = current_mask()
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, str | Mapping):
                object.__setattr__(self, spec.name, mask(value))
            elif isinstance(value, tuple) and spec.name != "upstream":
                object.__setattr__(self, spec.name, tuple(mask(value)))
        names = {*_RESERVED, *(spec.name for spec in dataclasses.fields(self))}
        if conflicts := sorted(names & self.tool_facts.keys()):
            raise ProvenanceError(f"'tool_facts' has names that the record itself uses: {', '.join(conflicts)}.")
        if self.of is not None:
            if type(self).role and self.of.role != type(self).role:
                raise ProvenanceError(f"{self.of} cannot have a {type(self).role} record.")
            object.__setattr__(self, "tool", self.of.tool)
            object.__setattr__(self, "role", self.of.role)

    # Once for all roles: a dataclass would compile them for each, whenever this is imported.
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(self.ref)

    def __repr__(self) -> str:
        facts = [f"{name}={value!r}" for name, value in vars(self).items() if value not in _EMPTY]
        return f"{type(self).__qualname__}({', '.join(facts)})"

    @property
    def ref(self) -> Ref:
        """The thing this record describes."""
        return self.of or Ref(self.tool, self.role, *self._identity())

    def _identity(self) -> tuple[str, str]:
        """`id` and `at` of the ref, from the facts."""
        if not self._id:
            raise ProvenanceError("A plain Record needs of=Ref(…), the thing that it describes.")
        return self._id.format_map(vars(self)), self._at.format_map(vars(self))

    def title(self) -> str:
        """The name of the thing for a reader, without the hash that only machines need."""
        return self.ref.id or self.ref.role

    def details(self) -> list[str]:
        """The facts for a reader, most important first; empty ones are left out."""
        return [text for text in self._details() if text]

    def _details(self) -> list[str]:
        return [pairs({name: value for name, value in self.tool_facts.items() if value not in _EMPTY})]

    def made_by(self) -> str:
        """The Dagster asset, partition and run that made it."""
        if not self.dagster_asset:
            return ""
        partition = f" [{self.dagster_partition}]" if self.dagster_partition else ""
        run = f" in run {self.dagster_run_id[:8]}" if self.dagster_run_id else ""
        return f"asset {self.dagster_asset}{partition}{run}"

    def missing(self, upstream: Iterable[Ref]) -> list[Ref]:
        """The things that this must have been made from, and `upstream` does not have, as unknown refs."""
        if not self._made_from or any(ref.role != "commit" for ref in upstream):
            return []
        return [Ref.unknown(self._made_from, f"of {self.role.replace('_', ' ')} {self.title()}")]

    def implies(self, ref: Ref) -> "Record | None":
        """A partial record of `ref`, which is upstream, from the facts of this record; else None.

        It continues the chain if neither the tool nor Dagster has a record of `ref`.
        """
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, empty facts left out, with ``schema`` and ``of``.

        Raises:
            ProvenanceError: A fact is nested too deeply.
        """
        facts = {**self._facts(), **self.tool_facts}
        schema.check_depth(facts)
        if self.upstream:
            facts["upstream"] = [ref.to_dict() for ref in self.upstream]
        of = {key: value for key, value in self.ref.to_dict().items() if value or key != "at"}
        return {"schema": schema.SCHEMA, "of": of, **json.loads(json.dumps(facts, default=str))}

    def _facts(self) -> dict[str, Any]:
        """The facts that are not empty."""
        names = [spec.name for spec in dataclasses.fields(self) if spec.name not in _RESERVED]
        facts = {name: value for name in names if (value := getattr(self, name)) not in _EMPTY}
        # Neither JSON nor Dagster's metadata takes a tuple or a mapping that is not a dict.
        return {
            name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for name, value in facts.items()
        }

    def to_json(self) -> str:
        """One line of JSON, which a tool stores as a tag."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Record":
        """Read a record of any role, tool and schema so far.

        Raises:
            ProvenanceError: `data` has a later schema, lacks a fact that its role needs, or is malformed.
        """
        if not isinstance(data, Mapping):
            raise ProvenanceError(f"A record is not a JSON object: {schema.short(data)}.")
        schema.check_depth(data)
        facts = schema.upgrade(data)
        of, upstream = facts.pop("of"), facts.pop("upstream", ())
        if not isinstance(upstream, list | tuple):
            raise ProvenanceError(f"The record is malformed: 'upstream' is {schema.short(upstream)}.")
        cls = _CLASSES.get(of["role"], Record)
        fields = {spec.name: spec for spec in dataclasses.fields(cls) if spec.name not in _RESERVED}
        values: dict[str, Any] = {
            key: schema.fact(value, fields[key].type, key)
            for key, value in facts.items()
            if key in fields and value is not None
        }
        values["tool_facts"] = {str(k): v for k, v in facts.items() if k not in fields and k not in _RESERVED}
        values["upstream"] = tuple(Ref.from_dict(ref) for ref in upstream)
        if cls is Record:
            return Record(of=Ref.from_dict(of), **values)
        try:
            record = cls(tool=schema.name(of.get("tool"), "tool"), **values)
        except TypeError as error:
            raise ProvenanceError(f"The {of['role']} record is malformed: {error}") from error
        ref = Ref.from_dict(of) if "id" in of else record.ref
        return record if ref == record.ref else dataclasses.replace(record, of=ref)

    @staticmethod
    def from_json(text: str) -> "Record":
        """Read what :meth:`to_json` wrote.

        Raises:
            ProvenanceError: The text is not a JSON object, or :meth:`from_dict` refuses it.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ProvenanceError(f"A record is not JSON: {schema.short(text)}.") from error
        return Record.from_dict(data)

    def to_metadata(self, above: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The record as Dagster metadata: each fact as ``<tool>/<name>``, the whole under ``dagster_mlops/<role>``.

        Args:
            above: Other metadata of the same asset, which people look for first. Dagster's UI keeps the order, so that
                it comes before the facts, and whole records come last. A fact never replaces what it has.
        """
        skip = ("dagster_run_id", "dagster_asset", "dagster_partition")
        facts = {name: value for name, value in {**self._facts(), **self.tool_facts}.items() if name not in skip}
        flat = {f"{self.tool}/{name}": value for name, value in facts.items()}
        above = above or {}
        metadata = {**above, **flat, f"{NAMESPACE}/{self.role}": dg.MetadataValue.json(self.to_dict()), **above}
        return dict(sorted(metadata.items(), key=lambda item: item[0].startswith(f"{NAMESPACE}/")))

    @classmethod
    def from_metadata(cls: type[_R], metadata: Mapping[str, Any]) -> _R | None:
        """The record of this class in an asset's metadata, or None.

        Raises:
            ProvenanceError: There is one, but it cannot be read.
        """
        return next((record for record in records_in(metadata) if isinstance(record, cls)), None)


def records_in(metadata: Mapping[str, Any]) -> Iterator[Record]:
    """Every provenance record in an asset's metadata, of any role.

    Raises:
        ProvenanceError: One of them cannot be read.
    """
    for stored in raw_records(metadata):
        yield Record.from_dict(stored)


def raw_records(metadata: Mapping[str, Any]) -> Iterator[Any]:
    """The stored form of every provenance record in an asset's metadata, which :meth:`Record.from_dict` reads."""
    for key, value in metadata.items():
        # An asset that makes several things of one role adds a name: dagster_mlops/dataset/models/cnn.
        namespace, role = [*key.split("/", 2), ""][:2]
        stored = getattr(value, "value", value)
        is_record = isinstance(stored, Mapping) and "schema" in stored and ("of" in stored or "kind" in stored)
        if namespace == NAMESPACE and (is_record or schema.ROLES.get(role, role) in _CLASSES):
            yield stored


def pairs(values: Mapping[str, Any]) -> str:
    """The first of many names with their values, in one line."""
    first = ", ".join(f"{short(name)}={short(value)}" for name, value in list(values.items())[:_MOST])
    return first + (f", and {len(values) - _MOST} more" if len(values) > _MOST else "")


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    huge = isinstance(value, int) and value.bit_length() > 256
    text = f"{value:.5g}" if isinstance(value, float) else schema.short(value) if huge else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
