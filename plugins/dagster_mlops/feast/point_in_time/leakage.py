"""The origin of a training set's values, looked up in the feature views' own sources rather than by Feast."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from duckdb import DuckDBPyConnection
from feast import FeatureStore

from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import MICROSECOND
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.retrieval import join_keys, types_in
from dagster_mlops.feast.offline.sql import described, family, instant
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.job import duckdb_connection
from dagster_mlops.feast.repository.registry import feature_service, feature_view


@dataclass(frozen=True)
class Origins:
    """The sampled rows of a training set, compared with the source of one feature view.

    Attributes:
        view: Name of the feature view.
        features: Its columns in the training set.
        rows: Number of sampled rows.
        matching: Rows with the values of the newest source row at or before the row's timestamp.
        leaked: Rows whose values are in the source at later timestamps only.
        unexplained: Rows whose values are not in the source, because it was changed since.
        expired: Rows whose newest source row was older than the ttl.
        without_source: Rows without any source row at or before their timestamp.
        created_late: Rows whose newest source row was created after their timestamp; None without a created timestamp.
        nearest: Least seconds from the newest source row to a row's timestamp.
        lead: Most seconds by which the values of a leaked row came after its timestamp.
    """

    view: str
    features: tuple[str, ...]
    rows: int
    matching: int
    leaked: int
    unexplained: int
    expired: int
    without_source: int
    created_late: int | None
    nearest: float | None
    lead: float | None


def origins(
    store: FeatureStore, service: str, table: pa.Table, timestamp_column: str, *, sample: int, seed: int
) -> tuple[list[Origins], dict[str, str]]:
    """The origins of a training set's values, for each feature view of a service.

    Args:
        table: The training set.
        sample: Number of rows that are looked up; `seed` alone decides which ones.

    Returns:
        One entry per view with a file source, and for each other view the reason why it was not looked up.
    """
    view_origins: list[Origins] = []
    left_out: dict[str, str] = {}
    with duckdb_connection() as connection:
        connection.register("training_set", table)
        kinds = described(connection, "training_set")
        if timestamp_column not in kinds:
            raise FeatureError(f"the training set has no column {timestamp_column!r} (it has: {', '.join(kinds)}).")
        row_time = instant(sql_name(timestamp_column), kinds[timestamp_column], "training set")
        connection.execute(
            f"CREATE TEMP TABLE sampled_rows AS SELECT *, {row_time} AS dagster_mlops_time FROM (SELECT *, "
            f"row_number() OVER () AS dagster_mlops_row FROM training_set) "
            f"ORDER BY hash(dagster_mlops_row + {int(seed)}), dagster_mlops_row LIMIT {int(sample)}"
        )
        definition = feature_service(store, service)
        types = types_in(definition, kinds)
        for projection in definition.feature_view_projections:
            view, name = feature_view(store, projection.name), projection.name_to_use()
            source = getattr(view, "batch_source", None)
            # The columns of the training set have either kind of names.
            columns = [(column, f.name) for f in projection.features for column in (f.name, f"{name}__{f.name}")]
            features = {column: feature for column, feature in columns if column in types and column in kinds}
            if source is None:
                left_out[name] = "it is computed on demand"
            elif type(source).__name__ != "FileSource":
                left_out[name] = f"its source is a {type(source).__name__}"
            elif features:
                relation = files.scan(connection, source, store.repo_path)
                view_origins.append(_look_up(connection, view, projection, features, relation))
    return view_origins, left_out


def _look_up(
    connection: DuckDBPyConnection, view: Any, projection: Any, features: dict[str, str], relation: str
) -> Origins:
    source, types = view.batch_source, described(connection, relation)
    renamed = {new: old for old, new in source.field_mapping.items() if old in types}
    keys = [(renamed.get(key, key), projection.join_key_map.get(key, key)) for key in join_keys(view)]
    stamp = renamed.get(source.timestamp_field, source.timestamp_field)
    created = renamed.get(source.created_timestamp_column, source.created_timestamp_column)
    columns = [f"{sql_name(old)} AS k{i}" for i, (old, _) in enumerate(keys)]
    columns.append(f"{instant(sql_name(stamp), types[stamp], view.name)} AS since")
    columns.append(f"{instant(sql_name(created), types[created], view.name) if created else 'NULL::BIGINT'} AS created")
    stored = [renamed.get(feature, feature) for feature in features.values()]
    columns += [f"{_comparable(sql_name(name), types[name])} AS v{i}" for i, name in enumerate(stored)]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW events AS SELECT {', '.join(columns)} FROM {relation}")

    sample_types = described(connection, "sampled_rows")
    values = ", ".join(f"{_comparable(sql_name(f), sample_types[f])} AS v{i}" for i, f in enumerate(features))
    same_key = " AND ".join([f"a.{sql_name(new)} = e.k{i}" for i, (_, new) in enumerate(keys)]) or "true"
    same = " AND ".join(f"a.v{i} IS NOT DISTINCT FROM e.v{i}" for i in range(len(features)))
    empty = " AND ".join(f"a.v{i} IS NULL" for i in range(len(features)))
    ttl = view.ttl // MICROSECOND if view.ttl else 0
    expired = f"a.row_time - since > {ttl}" if ttl else "false"
    [row] = connection.execute(
        f"""
        WITH a AS (SELECT *, dagster_mlops_time AS row_time, {values} FROM sampled_rows),
        newest AS (
            SELECT a.dagster_mlops_row AS row, max(e.since) AS since FROM a JOIN events e ON {same_key}
            AND e.since <= a.row_time GROUP BY a.dagster_mlops_row
        ),
        latest AS (
            SELECT n.row, n.since, max(e.created) AS created FROM newest n JOIN a ON a.dagster_mlops_row = n.row
            JOIN events e ON {same_key} AND e.since = n.since GROUP BY n.row, n.since
        ),
        equal AS (
            SELECT a.dagster_mlops_row AS row, bool_or(e.since = l.since) AS at_newest,
                min(e.since - a.row_time) FILTER (WHERE e.since > a.row_time) AS lead
            FROM a JOIN events e ON {same_key} AND {same} LEFT JOIN latest l ON l.row = a.dagster_mlops_row
            GROUP BY a.dagster_mlops_row
        ),
        classified AS (
            SELECT since IS NULL AS without_source, coalesce({expired}, false) AS expired, created > a.row_time AS late,
                a.row_time - since AS age, lead, ({empty}) AS empty, coalesce(at_newest, false) AS at_newest
            FROM a LEFT JOIN latest l ON l.row = a.dagster_mlops_row
            LEFT JOIN equal q ON q.row = a.dagster_mlops_row
        )
        SELECT count(*) AS rows,
            count(*) FILTER (WHERE CASE WHEN without_source OR expired THEN empty ELSE at_newest END) AS matching,
            count(lead) FILTER (WHERE NOT empty AND (without_source OR expired OR NOT at_newest)) AS leaked,
            rows - matching - leaked AS unexplained,
            count(*) FILTER (WHERE classified.expired) AS expired,
            count(*) FILTER (WHERE classified.without_source) AS without_source,
            {"count(*) FILTER (WHERE late AND NOT classified.expired)" if created else "NULL"} AS created_late,
            min(age) / 1e6 AS nearest,
            max(lead) FILTER (WHERE NOT empty AND (without_source OR expired OR NOT at_newest)) / 1e6 AS lead
        FROM classified
        """
    ).fetchall()
    counts = dict(zip((name for name, *_ in connection.description), row, strict=True))
    return Origins(view=projection.name_to_use(), features=tuple(features), **counts)


def _comparable(column: str, kind: str) -> str:
    """SQL for a value that compares with its copy in the training set: numbers as float64, the rest as text."""
    if family(kind) in ("number", "truth"):
        return f"CASE WHEN isnan({column}::DOUBLE) THEN NULL ELSE {column}::DOUBLE + 0.0 END"
    return instant(column, kind, "feature") if family(kind) == "time" else f"{column}::VARCHAR"
