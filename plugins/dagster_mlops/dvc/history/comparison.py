"""Differences of two versions of a dataset: columns, rows, bytes, and the values of a JSON or YAML file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from dagster_mlops.core.leaves import leaves
from dagster_mlops.core.metadata import COLUMN_SCHEMA, ROW_COUNT, table
from dagster_mlops.dvc.history.versions import version_hash
from dagster_mlops.dvc.metadata_keys import COLUMNS_CHANGED, ROWS_DELTA
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats
from dagster_mlops.dvc.store.contents import cached_path, candidates
from dagster_mlops.provenance import Dataset

PREVIOUS, BYTES_DELTA, VALUES_CHANGED = "dvc/previous", "dvc/bytes_delta", "dvc/values_changed"
_VALUE_FILES = (".json", ".yaml", ".yml")
_VALUES_LIMIT = 1_000_000  # bytes; a larger file is data rather than metrics
_LOOK_BACK = 20  # materializations among which the previous version is sought


@dataclass(frozen=True)
class Facts:
    """Facts about one version that need no reading of its rows. None and empty mean unknown."""

    md5: str
    rows: int | None = None
    bytes: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # type by name
    values: Mapping[str, Any] = field(default_factory=dict)  # of a metrics file, by dotted name


@dataclass(frozen=True)
class Diff:
    """The difference from `old` to `new`; deltas are None where one side is unknown."""

    old: Facts
    new: Facts

    @property
    def rows_delta(self) -> int | None:
        return _delta(self.old.rows, self.new.rows)

    @property
    def bytes_delta(self) -> int | None:
        return _delta(self.old.bytes, self.new.bytes)

    @property
    def columns(self) -> list[dict[str, str]]:
        """Each column that was added, lost or retyped, with its type ``before`` and ``after``."""
        if not self.old.columns or not self.new.columns:
            return []
        return [
            {"column": name, "change": change, "before": before, "after": after}
            for name, before, after in _pairs(self.old.columns, self.new.columns)
            if (change := "added" if not before else "lost" if not after else "retyped")
        ]

    @property
    def values(self) -> list[dict[str, Any]]:
        """Each value of a JSON or YAML file that differs; `delta` where both are numbers."""
        return [
            {"name": name, "before": str(before), "after": str(after), "delta": _delta(before, after)}
            for name, before, after in _pairs(self.old.values, self.new.values)
        ]

    def to_metadata(self) -> dict[str, Any]:
        """The difference as metadata of a materialization: the row delta, and everything else that changed."""
        facts: dict[str, Any] = {PREVIOUS: self.old.md5, ROWS_DELTA: self.rows_delta, BYTES_DELTA: self.bytes_delta}
        facts |= {**table(COLUMNS_CHANGED, self.columns), **table(VALUES_CHANGED, self.values)}
        return {name: fact for name, fact in facts.items() if fact is not None}


def diff(dvc: DvcResource, path: str, old: str = "previous", new: str | None = None) -> Diff:
    """Compare two versions of a dataset, each a hash, a git revision or ``previous``; `new` is by default the current.

        diff(dvc, "raw/flights.parquet", "v1.0").columns
        [{'column': 'gate', 'change': 'lost', 'before': 'string', 'after': ''}]

    Reads parquet footers and small JSON or YAML files only, but a version that is not on this machine is fetched.

    Raises:
        DatasetError: there is no such version, or it is not available.
    """
    hashes = [version_hash(dvc, path, old), version_hash(dvc, path, new) if new else dvc.data_version(path)]
    return Diff(*(facts_of(dvc.read_path(path, md5=md5), md5, name=path) for md5 in hashes))


def facts_of(file: Path, md5: str, *, name: str) -> Facts:
    """The facts of a version at `file`; `name` is the dataset's path, whose suffix says the format."""
    rows, columns = file_formats.described(file, name)
    parts = file.rglob("*") if file.is_dir() else [file]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    return Facts(md5, rows, size, _types(columns), values_in(file, name))


def values_in(file: Path, name: str) -> dict[str, Any]:
    """The leaves of a JSON or YAML file by dotted name; empty for other, large or unreadable files."""
    if not name.endswith(_VALUE_FILES) or not file.is_file() or file.stat().st_size > _VALUES_LIMIT:
        return {}
    try:
        content = (json.loads if name.endswith(".json") else yaml.safe_load)(file.read_bytes())
    except (ValueError, yaml.YAMLError):
        return {}
    return dict(leaves(content))


def stored_metadata(
    dvc: DvcResource,
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    new: Dataset,
    rows: int | None,
    columns: dg.TableSchema | None,
) -> dict[str, Any]:
    """The metadata of a version that was just stored: record, rows, columns, what changed since the previous one."""
    facts = {ROW_COUNT: rows, **_change(dvc, context.instance, key, new, columns), COLUMN_SCHEMA: columns}
    return new.to_metadata({name: fact for name, fact in facts.items() if fact is not None})


def _change(
    dvc: DvcResource, instance: dg.DagsterInstance, key: dg.AssetKey, new: Dataset, columns: dg.TableSchema | None
) -> dict[str, Any]:
    """The difference, as metadata, between a version that was just stored and the previous one on Dagster's record.

    Bytes that did not change are compared with the last ones that differed: a re-run does not make a loss go away.
    Nothing but the two events is read, except for metrics files, which are small.
    """
    records_filter = dg.AssetRecordsFilter(
        asset_key=key, asset_partitions=[new.dagster_partition] if new.dagster_partition else None
    )
    for event in instance.fetch_materializations(records_filter, limit=_LOOK_BACK).records:
        metadata = event.asset_materialization.metadata if event.asset_materialization else {}
        old = Dataset.from_metadata(metadata)
        if old is None or old.md5 == new.md5:
            continue
        before = getattr(metadata.get(COLUMN_SCHEMA), "value", None)
        return Diff(
            Facts(old.md5, old.rows, old.bytes, _types(before), _stored_values(dvc, old)),
            Facts(new.md5, new.rows, new.bytes, _types(columns), _stored_values(dvc, new)),
        ).to_metadata()
    return {}


def _stored_values(dvc: DvcResource, dataset: Dataset) -> dict[str, Any]:
    if not dataset.path.endswith(_VALUE_FILES) or (dataset.bytes or 0) > _VALUES_LIMIT:
        return {}
    with dvc.open(locked=False) as repo:
        paths = [Path(cached_path(repo, content)) for content in candidates(dataset.md5)]
        return values_in(next(filter(Path.exists, paths), paths[0]), dataset.path)


def _types(schema: dg.TableSchema | None) -> dict[str, str]:
    return {column.name: column.type for column in schema.columns} if schema else {}


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, before and after of all that differs, in a stable order; an empty text stands for a missing one."""
    pairs = [(name, old.get(name, ""), new.get(name, "")) for name in dict.fromkeys([*old, *new])]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _delta(old: Any, new: Any) -> Any:
    return new - old if isinstance(old, int | float) and isinstance(new, int | float) else None
