"""A Feast offline store on DuckDB's as-of join.

Feast imports this module by the name in ``feature_store.yaml``. Nothing else in this package imports it, because it
imports Feast.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import compute_non_entity_date_range
from pydantic import Field, PositiveInt, StrictStr

from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import from_microseconds, to_microseconds
from dagster_mlops.errors import FeatureError, MissingTableError
from dagster_mlops.feast.offline.retrieval import request_columns
from dagster_mlops.feast.offline.sql import described
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.asof import View, joined, within
from dagster_mlops.feast.point_in_time.columns import require, with_declared_types
from dagster_mlops.feast.point_in_time.inputs import (
    EntityRows,
    EventsBetween,
    chunked,
    entity_rows,
    in_memory,
    view_of,
)
from dagster_mlops.feast.point_in_time.job import AsofRetrievalJob, Connect, duckdb_connection
from dagster_mlops.feast.point_in_time.writing import add_partitions, write

_log = logging.getLogger(__name__)


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """Settings below ``offline_store:`` in ``feature_store.yaml``; only `type` is required.

    ```yaml
    offline_store:
      type: dagster_mlops.feast.offline_store.AsofOfflineStore
      memory_limit: 4GB
      temp_directory: /scratch
    ```
    """

    type: StrictStr = "dagster_mlops.feast.offline_store.AsofOfflineStore"
    memory_limit: StrictStr | None = Field(
        default=None,
        description="Memory that DuckDB may use before it spills, e.g. 4GB; its own default is 80 % of the RAM",
    )
    threads: PositiveInt | None = Field(default=None, description="DuckDB's threads; its own default is one per core")
    temp_directory: StrictStr | None = Field(
        default=None, description="Folder for DuckDB's spill files, which are removed afterwards"
    )
    chunk_rows: PositiveInt = Field(default=2_000_000, description="Entity rows that are joined at a time")


class AsofOfflineStore(OfflineStore):
    """Point-in-time joins of Parquet, CSV and Delta sources that keep every entity row, its order and its columns."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """The features as they were known at each entity row's timestamp.

        Args:
            entity_df: A pandas or polars dataframe, an Arrow table or dataset, the path of a Parquet or CSV file
                (also ``s3://``), or a query in DuckDB's SQL; None for keys and timestamps of all events of the views
                from `start_date` to `end_date`, both included.
            filter_by_created_timestamp: Leave out rows that were created after the entity row's timestamp.
            start_date: By default, the longest ttl of the views before `end_date`, or 30 days.
            end_date: By default now.

        Raises:
            FeatureError: Columns are missing or do not compare; raised before anything is joined.
        """
        dates: tuple[datetime, datetime] | None = None
        if entity_df is None:
            dates = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            entity_df = EventsBetween(feature_views, *map(to_microseconds, dates))
        entities = in_memory(entity_df)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        if foreign := [view.name for view in on_demand if view.mode == "substrait"]:
            raise FeatureError(
                f"on-demand views in substrait mode are not supported: {', '.join(foreign)}. Use pandas."
            )

        def planned(connection: duckdb.DuckDBPyConnection) -> tuple[EntityRows, list[View]]:
            rows = entity_rows(connection, entities, config.repo_path)
            requested = dict.fromkeys(name for view in on_demand for name in request_columns(view))
            if lacking := [name for name in requested if name not in rows.types]:
                raise FeatureError(
                    f"on-demand views take {', '.join(lacking)} from the request, which the entity rows lack (they "
                    f"have {', '.join(rows.types)}). Add them as columns."
                )
            views = [
                view_of(connection, config, view, feature_refs, rows, full_feature_names, filter_by_created_timestamp)
                for view in feature_views
            ]
            added = [name for view in views for name in view.features.values()]
            if clash := sorted({name for name in added if name in rows.types or added.count(name) > 1}):
                raise FeatureError(
                    f"the result would have two columns {', '.join(clash)}. Pass full_feature_names=True, or rename "
                    "the columns of the entity rows."
                )
            return rows, views

        def tables(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
            rows, views = planned(connection)
            several = not isinstance(entities, pa.Table) or entities.num_rows > _settings(config).chunk_rows
            with connect() as chunk_connection:  # a connection streams one query at a time
                chunks = chunked(chunk_connection, entities, config.repo_path, _settings(config).chunk_rows)
                yield from joined(connection, chunks, views, timestamp=rows.timestamp, bounds=rows.bounds, keep=several)

        connect = _connect(config)
        with connect() as connection:
            rows, _ = planned(connection)
        first, last = map(to_microseconds, dates) if dates else rows.bounds or (None, None)
        return AsofRetrievalJob(
            tables,
            connect,
            config.repo_path,
            on_demand_feature_views=on_demand,
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in rows.types if name != rows.timestamp],
                min_event_timestamp=None if first is None else from_microseconds(first),
                max_event_timestamp=None if last is None else from_microseconds(last),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> AsofRetrievalJob:
        """The latest row of each key within the range, both ends included; a naive date is UTC."""
        keys = [sql_name(name) for name in join_key_columns]
        # Of otherwise equal rows the largest values win, as in the join.
        order = [timestamp_field, created_timestamp_column, *feature_name_columns]
        latest = ", ".join(f"{sql_name(name)} DESC NULLS LAST" for name in order if name)
        latest = f"QUALIFY row_number() OVER (PARTITION BY {', '.join(keys) or '1'} ORDER BY {latest}) = 1"
        columns = (join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        return AsofOfflineStore.pull_all_from_table_or_query(
            config, data_source, *columns, start_date, end_date, condition=latest
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        *,
        condition: str = "",
    ) -> AsofRetrievalJob:
        """All rows within the range, both ends included; a naive date is UTC, and None means no bound.

        They have the source's column names; a missing column is an error when they are read. `condition` is further
        SQL below WHERE.
        """

        def query(connection: duckdb.DuckDBPyConnection) -> str:
            relation = files.scan(connection, data_source, config.repo_path)
            types = described(connection, relation)
            columns = [*join_key_columns, *feature_name_columns, timestamp_field]
            columns += [created_timestamp_column] if created_timestamp_column else []
            require(types, columns, data_source)
            relation, types = with_declared_types(connection, relation, types, {timestamp_field: "TIMESTAMPTZ"})
            bounds = [None if bound is None else to_microseconds(bound) for bound in (start_date, end_date)]
            span = within(sql_name(timestamp_field), types[timestamp_field], *bounds)
            # All rows of a view without entities have the same key in Feast, and the store must add its column.
            dummy = "" if join_key_columns else f", '{DUMMY_ENTITY_VAL}' AS {DUMMY_ENTITY_ID}"
            return f"SELECT {', '.join(map(sql_name, columns))}{dummy} FROM {relation} WHERE {span} {condition}"

        def tables(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
            reader = connection.sql(query(connection)).to_arrow_reader(_settings(config).chunk_rows)
            yield reader.schema.empty_table()
            for batch in reader:
                yield pa.Table.from_batches([batch], reader.schema)

        return AsofRetrievalJob(tables, _connect(config), config.repo_path, query=query)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source: a folder gets one more file, a single file is replaced by a longer one.

        Raises:
            FeatureError: The columns differ from the source's.
        """
        source = files.checked(feature_view.batch_source)
        with _connect(config)() as connection:
            source_schema = files.arrow_schema(connection, source, config.repo_path)
        if sorted(source_schema.names) != sorted(table.column_names):
            raise FeatureError(
                f"rows for {feature_view.name!r} have the columns {', '.join(table.column_names)}, and its source has "
                f"{', '.join(source_schema.names)}. Give exactly these."
            )
        write(source, config.repo_path, [table.select(source_schema.names).cast(source_schema)], append=True)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features to the destination's folder, a new file for each call (and partition)."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise FeatureError(f"this offline store logs features to files, not to {type(destination).__name__}.")
        rows = ds.dataset(data) if isinstance(data, Path) else data
        add_partitions(
            files.checked(destination.to_data_source()), config.repo_path, rows, list(destination.partition_by or [])
        )

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Refuse a source that lacks its timestamp columns; a source that does not exist yet is only a warning.

        ``feast apply`` comes before the first run that writes the table, also with Feast's own stores.

        Raises:
            FeatureError: Names the missing columns.
        """
        try:
            with _connect(config)() as connection:
                types = described(connection, files.scan(connection, data_source, config.repo_path))
        except MissingTableError as error:
            _log.warning("%s", error)
            return
        timestamp_columns = [data_source.timestamp_field, data_source.created_timestamp_column]
        require(types, [name for name in timestamp_columns if name], data_source)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """The columns of a source and their Arrow types, whatever its format."""
        with _connect(config)() as connection:
            schema = files.arrow_schema(connection, data_source, config.repo_path)
        return [(field.name, str(field.type)) for field in schema]


def _settings(config: RepoConfig) -> AsofOfflineStoreConfig:
    assert isinstance(config.offline_store, AsofOfflineStoreConfig)
    return config.offline_store


def _connect(config: RepoConfig) -> Connect:
    settings = _settings(config).model_dump(include={"memory_limit", "threads", "temp_directory"})
    return partial(duckdb_connection, **settings)
