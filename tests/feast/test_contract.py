"""Feast keeps the contract of a tool."""

import dataclasses

import pandas as pd
import pytest

from dagster_mlops.feast import FeastResource
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.tool import FeastTool
from dagster_mlops.provenance import FeatureView
from dagster_mlops.testing import check_tool
from tests.support import known_warnings

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DEPRECATED, *known_warnings.UNCLOSED]

SETTINGS = """
project: flights
provider: local
registry: {registry_type: sql, path: "sqlite:///registry.db"}
online_store: {type: sqlite, path: online.db}
offline_store: {type: dagster_mlops.feast.offline_store.AsofOfflineStore}
"""

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
source = FileSource(name="weather", path="weather.parquet", timestamp_field="at")
origin_weather = FeatureView(
    name="origin_weather", entities=[origin], ttl=timedelta(days=1), schema=[Field(name="temp", dtype=Float64)],
    source=source,
)
"""


def test_feast_answers_as_a_tool_has_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feature_store.yaml").write_text(SETTINGS.replace("sqlite:///", f"sqlite:///{tmp_path}/"))
    (tmp_path / "features.py").write_text(FEATURES)
    at = pd.to_datetime(["2013-01-01"], utc=True)
    pd.DataFrame({"origin": ["JFK"], "temp": [1.0], "at": at}).to_parquet(tmp_path / "weather.parquet")
    feast = FeastResource(repo=str(tmp_path))
    assert feast.apply()
    store = feast.store()
    record = FeatureView(name="origin_weather", project="flights", repo=str(tmp_path), version="9f00", rows=3)
    registry.put_record(store, record)
    absent = dataclasses.replace(record.ref, id="flights/never@9f00")
    check_tool(FeastTool(), name="feast", present=record.ref, absent=absent)
