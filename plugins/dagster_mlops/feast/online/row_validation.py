"""Checks of pushed rows against their feature views, before the first row is written."""

from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pa, pd
from dagster_mlops.feast.offline.retrieval import join_keys


def checked(
    store: FeatureStore, views: list[Any], destination: str, table: "pa.Table", *, offline: bool
) -> tuple["pa.Table", str]:
    """`table` in Feast's types with its event timestamps in UTC, and the name of their column.

    Raises:
        FeatureError: Names `destination` and every problem of the table.
    """
    feast_types = extra("feast.types")
    problems: list[str] = []
    expected_types: dict[str, Any] = {}
    times = {view.batch_source.timestamp_field for view in views}
    for view in views:
        for column in [*view.entity_columns, *view.features]:
            if not column.name.startswith("__"):
                expected_types[column.name] = feast_types.from_feast_to_pyarrow_type(column.dtype)
    keys = {key for view in views for key in join_keys(view)}
    expected_types |= {time: pa.timestamp("us", tz="UTC") for time in times}
    if len(times) > 1:
        problems.append(f"its views name their timestamp differently: {', '.join(sorted(times))}")
    missing = sorted(set(expected_types) - set(table.column_names))
    if missing:
        problems.append(f"the columns {', '.join(missing)} are missing (it has: {', '.join(table.column_names)})")
    if offline:
        stores, config = extra("feast.infra.offline_stores.offline_store", extra="feast"), store.config.offline_store
        offline_store = extra("feast.infra.offline_stores.offline_utils").get_offline_store_from_config(config)
        if type(offline_store).offline_write_batch is stores.OfflineStore.offline_write_batch:
            problems.append(
                f"Feast cannot write to the offline store {getattr(config, 'type', '')!r}: push them with to='online', "
                "and write them to the source in an asset of your own"
            )
        for view in views:
            source_columns = {name for name, _ in view.batch_source.get_table_column_names_and_types(store.config)}
            if source_columns != set(table.column_names):
                problems.append(
                    f"the batch source of {view.name!r} has exactly the columns {', '.join(sorted(source_columns))}, "
                    f"and these rows have {', '.join(sorted(table.column_names))}"
                )
    for name in sorted(set(expected_types) & set(table.column_names)):
        column, target = table[name], expected_types[name]
        try:
            if _family(column.type) not in (_family(target), "null"):
                raise pa.ArrowInvalid("another kind of value")
            if pa.types.is_timestamp(target):
                # Feast's stores keep microseconds; finer digits are cut off.
                column = column.cast(pa.timestamp("us", tz=column.type.tz or "UTC"), safe=False)
            table = table.set_column(table.schema.get_field_index(name), name, column.cast(target))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(f"{name!r} is {column.type} and must be {target} ({error})")
            continue
        if name in keys | times and column.null_count:
            problems.append(f"{name!r} is missing in {column.null_count} rows")
    if problems:
        raise FeatureError(f"rows for {destination} were refused, and nothing was written: {'; '.join(problems)}.")
    return table, times.pop()


def _family(type: "pa.DataType") -> str:
    """The kind of values in a column, independent of their width."""
    types = pa.types
    if types.is_dictionary(type):
        return _family(type.value_type)
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return f"list of {_family(type.value_type)}"
    tests_by_family = {
        "number": (types.is_integer, types.is_floating),
        "time": (types.is_timestamp,),
        "text": (types.is_string, types.is_large_string, types.is_string_view),
        "bytes": (types.is_binary, types.is_large_binary),
    }
    return next((family for family, tests in tests_by_family.items() if any(test(type) for test in tests)), str(type))


def refuse_empty(views: list[Any], batches: list["pa.Table"]) -> None:
    """Refuse batches without any feature value: Feast would only warn and not write them, so old values would stay."""
    for view in views:
        names = [feature.name for feature in view.features]
        if any(all(batch[name].null_count == batch.num_rows for name in names) for batch in batches):
            raise FeatureError(
                f"all values of {', '.join(names)} are missing in rows for feature view {view.name!r}, and Feast does "
                "not write such rows. Nothing was written. Leave them out, or push them together with others."
            )


def as_pandas(table: "pa.Table") -> Any:
    """A pandas dataframe with Arrow's types, where integers stay integers beside missing values."""
    return table.to_pandas(types_mapper=pd.ArrowDtype)
