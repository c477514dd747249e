"""A record says the same thing wherever it was kept, and never a secret."""

import dataclasses
from typing import cast, get_origin

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops import provenance
from dagster_mlops.core.asset_records import latest_records, upstream_records, upstream_refs
from dagster_mlops.errors import ProvenanceError
from dagster_mlops.provenance import (
    Dataset,
    FeatureView,
    ModelVersion,
    Record,
    Ref,
    TrainingRun,
    mask_credentials,
    records_in,
)

ROLES = sorted(
    (role for role in vars(provenance).values() if isinstance(role, type) and issubclass(role, Record) and role.role),
    key=lambda role: role.role,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: "://" not in t)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
REFS = st.builds(Ref, TEXT, TEXT, TEXT, at=TEXT.map(mask_credentials))


def _values(declared: object) -> st.SearchStrategy:
    if declared is str:
        return TEXT.map(mask_credentials)
    if get_origin(declared) is tuple:
        return st.lists(REFS if "Ref" in str(declared) else TEXT, max_size=3).map(tuple)
    if "Mapping" in str(declared):
        return st.dictionaries(TEXT, TEXT if "str, str" in str(declared) else NUMBERS, max_size=3)
    if "Ref" in str(declared):
        return st.none()
    plain = {int: st.integers(0, 2**40), float: NUMBERS, bool: st.booleans()}
    wanted = [strategy for kind, strategy in plain.items() if kind is declared or kind.__name__ in str(declared)]
    return st.one_of(wanted) if wanted else st.one_of(TEXT, NUMBERS, st.lists(NUMBERS, min_size=1, max_size=3))


# What only the tool knows: any JSON, under names that no role uses.
JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**60), 2**60), NUMBERS, TEXT.map(mask_credentials)),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(TEXT, inner, min_size=1, max_size=3),
    max_leaves=5,
)
OWN = st.dictionaries(TEXT.map("fact {}".format), JSON, max_size=3)
FACTS = {
    role: {f.name: OWN if f.name == "tool_facts" else _values(f.type) for f in dataclasses.fields(role)}
    for role in ROLES
}
UNKNOWN = st.builds(Record, of=REFS.filter(lambda ref: ref.role not in {r.role for r in ROLES}), tool_facts=OWN)
RECORDS = st.one_of([UNKNOWN, *(st.builds(role, **facts) for role, facts in FACTS.items())])


@given(RECORDS)
@settings(max_examples=150, deadline=None)
def test_a_record_survives_json(record):
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.ref == record.ref
    assert "\n" not in record.to_json()


@given(RECORDS)
@settings(max_examples=25, deadline=None)
def test_a_record_survives_dagster_metadata(record):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("thing", metadata=record.to_metadata()))
        assert latest_records(instance, dg.AssetKey("thing")) == [record]
        event = instance.get_latest_materialization_event(dg.AssetKey("thing"))
        assert event and event.asset_materialization
        assert type(record).from_metadata(event.asset_materialization.metadata) == record


@given(RECORDS, st.dictionaries(TEXT, NUMBERS, max_size=2))
@settings(max_examples=25, deadline=None)
def test_facts_of_a_later_version_are_kept_and_written_again(record, extra):
    later = {**{f"later_{name}": value for name, value in extra.items()}, **record.to_dict()}
    again = Record.from_dict(later)
    assert dataclasses.replace(again, tool_facts=record.tool_facts) == record
    assert again.to_dict() == later


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema": 3, "of": {"tool": "dvc", "role": "dataset", "id": "x"}}', "schema 3"),
        ('{"kind": "dataset"}', "schema None"),
        ('{"schema": true, "kind": "dataset"}', "schema True"),
        ('{"schema": 1, "kind": ["dataset"]}', "its kind is a list of 1"),
        ('{"schema": 1, "kind": "dataset"}', "malformed"),
        ('{"schema": 1, "kind": "dataset", "path": "a", "md5": "b", "repo": "c", "upstream": [3]}', "malformed"),
        (
            '{"schema": 1, "kind": "dataset", "path": "a", "md5": "b", "repo": "c", "upstream": "x"}',
            "'upstream' is 'x'",
        ),
        ('{"schema": 2, "of": "dvc"}', "'of' does not name a thing"),
        ('{"schema": 2, "of": {"tool": "dvc", "role": "dataset"}, "path": 1, "md5": "b", "repo": "c"}', "'path' is 1"),
        (
            '{"schema": 2, "of": {"tool": [], "role": "dataset"}, "path": "a", "md5": "b", "repo": "c"}',
            "its tool is a l",
        ),
        ('{"schema": 2, "of": {"tool": "x", "role": "poem"}}', "its id is None"),
        ('{"schema": 2, "of": {"tool": "x", "role": "poem", "id": "' + "x" * 10_001 + '"}}', "its id is 'xxx"),
        (
            '{"schema": 1, "kind": "training_run", "run_id": "r", "tracking_uri": "u", "metrics": {"a": []}}',
            "metrics.a",
        ),
        ('{"schema": 1, "kind": "training_run", "run_id": "r", "tracking_uri": "u", "metrics": 3}', "'metrics' is 3"),
        ('{"schema": 1, "kind": "training_run", "run_id": "r", "tracking_uri": "u", "seed": 1.5}', "'seed' is 1.5"),
        ('{"schema": 1, "kind": "training_run", "run_id": "r", "tracking_uri": "u", "seed": 1e999}', "'seed' is inf"),
        ('{"schema": 1, "kind": "poem", "x": ' + "[" * 200 + "]" * 200 + "}", "levels deep"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(text, complaint):
    with pytest.raises(ProvenanceError, match=complaint):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://ml:s3cret@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("https://s3cret@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("redis://:p@s3cret@cache:6379/0", "redis://***@cache:6379/0"),
        ("s3://bucket/x?region=eu&aws_secret_access_key=s3cret", "s3://bucket/x?region=eu&aws_secret_access_key=***"),
        ("https://blob/x?sv=1&sig=s3cret#top", "https://blob/x?sv=1&sig=***#top"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("s3://bucket@v1/x", "s3://bucket@v1/x"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("s3://access:s3cret@bucket/x", "s3://***@bucket/x"),
        ("http://mlflow:5000/delay@champion", "http://mlflow:5000/delay@champion"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("a file:///x and http://u:s3cret@h", "a file:///x and http://***@h"),
    ],
)
def test_urls_lose_their_credentials_and_nothing_else(url, masked):
    assert mask_credentials(url) == masked
    assert mask_credentials(masked) == masked


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.role)
def test_no_text_field_of_any_record_keeps_a_credential(role):
    secret = "postgresql://ml:s3cret@db/x"
    required = {
        f.name: secret if f.type is str else 1
        for f in dataclasses.fields(role)
        if f.type is str or (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
    }
    record = role(**required, upstream=(Ref("dvc", "dataset", "x", at=secret),), tool_facts={"place": secret})
    assert "s3cret" not in record.to_json()
    assert "s3cret" not in repr(record.to_metadata())
    assert "s3cret" not in record.ref.at


def test_two_roles_of_record_share_one_asset():
    made = Dataset(path="x.parquet", md5="9f", repo="/data")
    run = TrainingRun(run_id="r", tracking_uri="sqlite:///m.db")
    assert list(records_in({**made.to_metadata(), **run.to_metadata()})) == [made, run]
    assert ModelVersion.from_metadata(made.to_metadata()) is None


def test_what_people_look_for_is_above_the_record_and_stays_as_it_is():
    made = Dataset(path="x.parquet", md5="9f", repo="/data")
    run = TrainingRun(run_id="r", tracking_uri="sqlite:///m.db")
    metadata = run.to_metadata(made.to_metadata({"auc": 0.8, "dvc/path": "shown"}))
    assert [*metadata][:2] == ["auc", "dvc/path"] and metadata["dvc/path"] == "shown"
    assert [*metadata][-2:] == ["dagster_mlops/dataset", "dagster_mlops/training_run"]
    assert list(records_in(metadata)) == [made, run]


MONTHS = dg.MonthlyPartitionsDefinition("2013-01-01", end_date="2013-04-01")


def _dataset(partition: str) -> Dataset:
    return Dataset(path=f"raw/{partition}.parquet", md5=f"md5 of {partition}", repo="/data")


@dg.asset(partitions_def=MONTHS)
def raw(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata=_dataset(context.partition_key).to_metadata())


@dg.asset
def planes() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata=_dataset("planes").to_metadata())


def _seen(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    assert upstream_refs(context) == tuple(record.ref for record in upstream_records(context))
    return dg.MaterializeResult(metadata={"seen": [ref.id for ref in upstream_refs(context)]})


@dg.asset(partitions_def=MONTHS, deps=[raw])
def monthly(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return _seen(context)


BEFORE = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)


@dg.asset(partitions_def=MONTHS, deps=[dg.AssetDep(raw, partition_mapping=BEFORE)])
def month_after(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return _seen(context)


@dg.asset(deps=[raw, planes])
def everything(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return _seen(context)


@dg.asset(partitions_def=MONTHS, deps=[raw])
def in_one_run(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return _seen(context)


external = dg.AssetSpec("external")


@dg.asset(deps=[external])
def reader(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return _seen(context)


WORLD = [external, reader, raw, planes, monthly, month_after, everything, in_one_run]


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        for month in MONTHS.get_partition_keys():
            dg.materialize(WORLD, selection=[raw], partition_key=month, instance=instance)
        dg.materialize(WORLD, selection=[planes], instance=instance)
        yield instance


def _ids(*partitions: str) -> list[str]:
    return [_dataset(partition).ref.id for partition in partitions]


def _materialize(instance, asset, **options) -> list[str]:
    """What the asset saw upstream."""
    result = dg.materialize(WORLD, selection=[asset], instance=instance, **options)
    values = [event.materialization.metadata["seen"].value for event in result.get_asset_materialization_events()]
    [seen] = {tuple(cast(list[str], value)) for value in values}
    return list(seen)


def test_upstream_of_a_partition_is_its_own_month(instance):
    assert _materialize(instance, monthly, partition_key="2013-02-01") == _ids("2013-02-01")


def test_upstream_follows_the_partition_mapping(instance):
    assert _materialize(instance, month_after, partition_key="2013-02-01") == _ids("2013-01-01")


def test_a_partition_that_maps_to_nothing_has_no_upstream(instance):
    assert _materialize(instance, month_after, partition_key="2013-01-01") == []


def test_upstream_of_an_unpartitioned_asset_is_every_month(instance):
    assert _materialize(instance, everything) == _ids("planes", "2013-01-01", "2013-02-01", "2013-03-01")


def test_upstream_of_one_run_over_many_partitions_is_those_partitions(instance):
    tags = {"dagster/asset_partition_range_start": "2013-01-01", "dagster/asset_partition_range_end": "2013-02-01"}
    assert _materialize(instance, in_one_run, tags=tags) == _ids("2013-01-01", "2013-02-01")


def test_what_is_only_observed_is_upstream_too():
    with dg.DagsterInstance.ephemeral() as instance:
        for version in ("old", "new"):
            view = FeatureView(name="view", version=version, project="p", repo="/repo")
            instance.report_runless_asset_event(dg.AssetObservation("external", metadata=view.to_metadata()))
        assert _materialize(instance, reader) == ["p/view@new"]


def test_without_a_materialization_there_is_no_record(instance):
    assert latest_records(instance, dg.AssetKey("never")) == []
