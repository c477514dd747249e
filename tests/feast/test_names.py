"""Names in a Feast repository as asset keys, repeated names, and what a repository has beside views and services."""

import dataclasses
import re
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.saved_dataset import SavedDataset

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource, feature_freshness_checks, feature_repository_defs, feature_view_assets
from dagster_mlops.feast.repository import load_repository
from dagster_mlops.feast.repository.definitions import Definition, Repository, refuse_repeated_names
from dagster_mlops.feast.repository.names import asset_name, refuse_equal
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.FEAST_EXPERIMENTAL,
]

SETTINGS = """
project: rides
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db"}}
online_store: {{type: sqlite, path: {root}/online.db}}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, ValueType
from feast.permissions.action import AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Float64

rides = Project(name="rides", description="All about rides.", owner="rides@example.com")
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
source = FileSource(name="источник", path={path!r}, timestamp_field="at")
schema = [Field(name="rate", dtype=Float64)]
views = [
    FeatureView(name=name, entities=[driver], source=source, schema=schema if name != "type" else [])
    for name in {names!r}
]
globals().update({{f"view_{{i}}": view for i, view in enumerate(views)}})
service = FeatureService(name="всё", features=views[:2])
writers = Permission(
    name="writers", types=[FeatureView], name_patterns=["по.*"], actions=[AuthzedAction.UPDATE],
    policy=RoleBasedPolicy(roles=["writer"]),
)
readers = Permission(
    name="readers", types=[FeatureView], name_patterns=["по.*"], required_tags={{"tier": "gold"}},
    actions=[AuthzedAction.DESCRIBE], policy=RoleBasedPolicy(roles=["reader"]),
)
"""


def _repository(root: Path, *names: str) -> Path:
    (root / "feature_store.yaml").write_text(SETTINGS.format(root=root))
    (root / "features.py").write_text(DEFINITIONS.format(path=str(root / "trips.parquet"), names=names))
    return root


TRIPS, SERVICE = asset_name("поездки"), asset_name("всё")


@pytest.fixture(scope="module")
def rides(tmp_path_factory) -> Path:
    """A repository with names in another script, and one that Dagster keeps for itself."""
    root = tmp_path_factory.mktemp("names")
    at = pd.to_datetime(["2024-01-01", "2024-01-02"]).as_unit("us")
    pd.DataFrame({"driver": [1, 1], "rate": [1.0, 2.0], "at": at}).to_parquet(root / "trips.parquet")
    return _repository(root, "поездки", "поездка", "type")


def test_views_of_any_name_are_assets_that_materialize(rides):
    views = feature_view_assets(repo=rides)
    feast = FeastResource(repo=str(rides))
    checks = feature_freshness_checks(asset=TRIPS, view="поездки")
    result = dg.materialize([*views, *checks], resources={"feast": feast}, raise_on_error=False)
    materialized = {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}
    assert materialized == {TRIPS, "xn--80ahciqug", "type_"}
    passed = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert passed == {"features_fresh": True, "online_up_to_date": True}
    assert feast.online_features(pd.DataFrame({"driver": [1]}), "всё", full_feature_names=True).iloc[0, 1] == 2.0


@pytest.mark.parametrize(("one", "other"), [("a b", "a_b"), ("a.b", "a-b")])
def test_views_that_dagster_cannot_tell_apart_are_named_when_definitions_load(tmp_path, one, other):
    views = feature_view_assets(repo=_repository(tmp_path, one, "🚕 rides", "🚕"))
    defs = dg.Definitions(assets=views, resources={"feast": FeastResource(repo=str(tmp_path))})
    keys = {key.path[-1] for key in defs.resolve_asset_graph().materializable_asset_keys}
    defs.resolve_implicit_global_asset_job_def()
    assert keys == {asset_name(one), "xn--_rides-vq84e", "xn--n68h"}
    with pytest.raises(FeatureError, match=f"{one!r} and feature view {other!r} are both a_b in Dagster. Rename"):
        feature_view_assets(repo=_repository(tmp_path, one, other))


def test_a_key_tells_its_name_from_every_other_one():
    names = ["rides", "поездки", "поездка", "🚕", "🚙", "a b", "a.b", "a-b", "日本", "/data/rides.parquet", "Über"]
    keys = [asset_name(name) for name in names]
    assert len({*keys}) == len(names)
    assert keys[0] == "rides" and keys[-2] == "data_rides.parquet"
    assert all(re.fullmatch(r"\w+", dg.AssetKey(key).to_python_identifier(), re.ASCII) for key in keys)


@pytest.mark.parametrize(("one", "other"), [("a b", "a_b"), ("_rides", "rides"), ("a/b", "a?b"), ("ü b", "ü_b")])
def test_names_with_one_key_are_refused_with_both_names(one, other):
    pairs = [(f"feature view {name!r}", asset_name(name)) for name in (one, other)]
    with pytest.raises(FeatureError, match=f"{re.escape(repr(one))} and .*{re.escape(repr(other))} are both "):
        refuse_equal(pairs)


# Repeated names


def _with(repository: Repository, kind: str, thing: Definition) -> Repository:
    return dataclasses.replace(repository, **{kind: [*getattr(repository, kind), thing]})


@pytest.mark.parametrize("kind", ["views", "sources", "entities", "services"])
def test_a_name_that_is_defined_twice_is_refused_when_definitions_load(rides, kind):
    repository = load_repository(rides)
    first = getattr(repository, kind)[0]
    twin = dataclasses.replace(first, description="another one")
    with pytest.raises(FeatureError, match=f"two things of one name: .*{first.name!r} and .*{first.name!r}"):
        refuse_repeated_names(_with(repository, kind, twin))
    shouted = dataclasses.replace(twin, name=first.name.upper())
    if kind in ("views", "sources"):  # of which Feast compares names without case
        with pytest.raises(FeatureError, match=f"{first.name!r} and .*{first.name.upper()!r}"):
            refuse_repeated_names(_with(repository, kind, shouted))
    else:
        refuse_repeated_names(_with(repository, kind, shouted))


def test_repeated_names_in_files_are_refused_and_equal_sources_are_one(tmp_path):
    repo = _repository(tmp_path, "rides", "trips")
    twin = (repo / "features.py").read_text().replace("views = [", "more = [").replace("rides = ", "again = ")
    (repo / "more.py").write_text(
        twin.split("globals()")[0].replace("'rides'", "'others'").replace("'trips'", "'more'")
    )
    assert [source.name for source in load_repository(repo).sources] == ["источник"]
    with (repo / "features.py").open("a") as file:
        file.write("\nalias = views[0].with_name('taxi')\n")
    with pytest.raises(FeatureError, match="feature view 'rides' and feature view 'rides'"):
        feature_view_assets(repo=repo)


# What else a repository has


def test_views_without_a_schema_say_so_and_permissions_and_projects_are_shown(rides):
    graph = feature_repository_defs(
        repo=rides, include=["sources", "services", "permissions", "projects"]
    ).resolve_all_asset_specs()
    specs = {spec.key.to_user_string(): spec for spec in graph}
    assert "infers it" in specs["type_"].metadata["feast/schema"] and "feast/schema" not in specs[TRIPS].metadata
    assert specs[TRIPS].metadata["feast/permissions"] == ["readers", "writers"]  # Feast looks for no tags here
    assert "feast/permissions" not in specs["type_"].metadata
    assert specs["projects/rides"].description == "All about rides." and specs["projects/rides"].owners
    assert specs["permissions/readers"].metadata["feast/permission"] == {
        "types": ["FeatureView"],
        "name_patterns": ["по.*"],
        "required_tags": {"tier": "gold"},
        "actions": ["describe"],
        "policy": "RoleBasedPolicy",
        "holders": {"roles": ["reader"]},
    }
    assert {dep.asset_key.path[-1] for dep in specs[f"feature_services/{SERVICE}"].deps} == {TRIPS, "xn--80ahciqug"}


def test_saved_datasets_of_a_registry_are_shown_below_their_service(rides, tmp_path):
    feast = FeastResource(repo=str(rides))
    feast.apply()
    store: FeatureStore = feast.store()
    saved = SavedDataset(
        name="january",
        features=["поездки:rate"],
        join_keys=["driver"],
        storage=SavedDatasetFileStorage(path=str(tmp_path / "january.parquet")),
        tags={"month": "1"},
        feature_service_name="всё",
    )
    store.registry.apply_saved_dataset(saved, "rides")
    (tmp_path / "feature_store.yaml").write_text(SETTINGS.format(root=rides))
    specs = {s.key.to_user_string(): s for s in feature_repository_defs(repo=tmp_path).resolve_all_asset_specs()}
    january = specs["saved_datasets/january"]
    assert january.metadata["feast/source"] == str(tmp_path / "january.parquet")
    assert [dep.asset_key for dep in january.deps] == [dg.AssetKey(["feature_services", SERVICE])]
    assert [key for key in specs if key.startswith("saved_datasets/")] == ["saved_datasets/january"]
    assert {permission.name for permission in load_repository(tmp_path).permissions} == {"readers", "writers"}
