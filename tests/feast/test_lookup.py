"""A service that gets keys reads the features itself: as Feast has them, or not at all."""

import asyncio
import dataclasses
import importlib
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature

from dagster_mlops.errors import DeploymentError, FeatureError
from dagster_mlops.feast import FeastResource, OnlineLookup
from dagster_mlops.serving import PredictionLog
from dagster_mlops.serving.golden.entities import with_entities
from dagster_mlops.serving.golden.golden_set import Golden, score_golden
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.limits import Limits
from dagster_mlops.serving.runtime.lookup import Lookups
from tests.support import known_warnings
from tests.support.asgi import answer
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.FEAST_EXPERIMENTAL,
    *known_warnings.MLFLOW,
    *known_warnings.MLFLOW_HINTS,
    pytest.mark.filterwarnings("ignore:.*type hint"),
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
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64, String

def file(name):
    return FileSource(name=name, path={root!r} + f"/{{name}}.parquet", timestamp_field="at")

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.STRING)
trips = FeatureView(
    name="trips", entities=[driver], ttl=timedelta(days=9), source=file("trips"),
    schema=[Field(name="rate", dtype=Float64), Field(name="done", dtype=Int64), Field(name="active", dtype=Bool)],
)
air = FeatureView(name="air", entities=[city], source=file("air"), schema=[Field(name="temp", dtype=Float64)])
quote = RequestSource(name="quote", schema=[Field(name="price", dtype=Float64)])

@on_demand_feature_view(sources=[trips, quote], schema=[Field(name="offer", dtype=Float64)])
def offers(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"offer": inputs["rate"].fillna(0) * inputs["price"]}})

rides = FeatureService(name="rides", features=[trips[["rate", "done", "active"]], air])
offered = FeatureService(name="offered", features=[offers, air])
"""
NOW = datetime.now(UTC).replace(microsecond=0)


class Rides:
    """A repository with features of drivers 1 and 2, expired ones of 3, none of others, and a model of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.repo = root, root / "repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root))
        (self.repo / "features.py").write_text(DEFINITIONS.format(root=str(root)))
        self.store = FeastResource(repo=str(self.repo)).applied_store()
        self.write([1, 2, 3], rate=[0.1, None, 3.0], done=[2**40, 2, 3], active=[True, False, True])
        self.write_city(["a"], [10.0])

    def write(self, drivers: list[int], **features: Any) -> None:
        ages = [timedelta(days=30 if driver == 3 else 1) for driver in drivers]
        at = pd.Series([NOW - age for age in ages]).astype("datetime64[us, UTC]")
        self.store.write_to_online_store("trips", pd.DataFrame({"driver_id": drivers, **features, "at": at}))

    def write_city(self, cities: list[str], temps: list[float]) -> None:
        at = pd.Series([NOW] * len(cities)).astype("datetime64[us, UTC]")
        self.store.write_to_online_store("air", pd.DataFrame({"city_id": cities, "temp": temps, "at": at}))

    def lookup(self, service: str = "rides", **options: Any) -> OnlineLookup:
        return OnlineLookup(repo=self.repo, feature_service=service, **options)

    def model(self, frame: pd.DataFrame) -> Any:
        """A model that answers with its features."""
        place = self.root / f"model-{len(list(self.root.glob('model-*')))}"
        echo = importlib.import_module("tests.support.pyfuncs").Features()  # its import warns
        mlflow.pyfunc.save_model(str(place), python_model=echo, signature=infer_signature(frame), pip_requirements=[])
        return mlflow.pyfunc.load_model(str(place))


@pytest.fixture(scope="module")
def rides(tmp_path_factory) -> Rides:
    return Rides(tmp_path_factory.mktemp("rides"))


@pytest.fixture(scope="module")
def model(rides) -> Any:
    return rides.model(pd.DataFrame({"temp": [1.5], "rate": [0.5], "done": [1], "active": [1.0]}))


def app_of(model: Any, lookup: Any, log: Path | None = None, **limits: Any) -> PredictionApp:
    app = PredictionApp(Limits(**limits))
    written = PredictionLog(log, deployment="d", rotate=False) if log else None
    app.serve(model, name="rides/1", deployment="d", log=written, lookup=lookup)
    return app


def ask(app: PredictionApp, body: Any) -> tuple[int, dict[str, Any]]:
    status, content = asyncio.run(answer(app, json.dumps(body).encode(), [(b"x-request-id", b"r")]))
    return status, json.loads(content)


def entity(driver: Any = 1, city: Any = "a", **more: Any) -> dict[str, Any]:
    return {"driver_id": driver, "city_id": city, **more}


def test_features_are_those_of_feast_and_the_log_has_them_with_the_keys(rides, model, tmp_path):
    app = app_of(model, rides.lookup(), tmp_path)
    status, body = ask(app, {"entities": [entity(), entity(2)]})
    assert status == 200 and body["ids"] == ["r/0", "r/1"]
    assert body["predictions"] == [
        {"temp": 10.0, "rate": 0.1, "done": 2**40, "active": 1.0},
        {"temp": 10.0, "rate": None, "done": 2, "active": 0.0},  # a null that the store holds
    ]
    logged = PredictionLog.find(tmp_path, "r/0")
    assert logged
    assert logged["inputs"] == {**entity(), "temp": 10.0, "rate": 0.1, "done": 2**40, "active": 1.0}
    rows = [{"temp": 1.0, "rate": 2.0, "done": 3, "active": 1.0}]
    assert ask(app, {"rows": rows})[1]["predictions"] == rows, "features may be sent as before"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"entities": [entity(), entity(7)]}, 422, "entity 1 has no current features in trips"),
        ({"entities": [entity(3)]}, 422, "entity 0 has no current features in trips"),  # expired
        ({"entities": [entity(1, "z")]}, 422, "entity 0 has no current features in air"),
        ({"entities": [entity("1")]}, 400, r"Expected `int`, got `str` - at `$.entities[0].driver_id`"),
        ({"entities": [entity(1.5)]}, 400, r"Expected `int`, got `float`"),
        ({"entities": [entity(2**63)]}, 400, "Expected `int` <= 9223372036854775807"),
        ({"entities": [{"driver_id": 1}]}, 400, "missing required field `city_id`"),
        ({"entities": [entity(rate=1.0)]}, 400, "unknown field `rate`"),
        ({"entities": []}, 400, "length >= 1"),
        ({"entities": [entity()], "rows": [{"temp": 1.0, "rate": 1.0, "done": 1, "active": 1.0}]}, 400, "Send either"),
        ({}, 400, "Send either"),
    ],
)
def test_what_cannot_be_looked_up_is_refused_and_not_logged(rides, model, tmp_path, body, status, reason):
    answered, said = ask(app_of(model, rides.lookup(), tmp_path), body)
    assert (answered, reason in said["error"]) == (status, True), said
    assert PredictionLog.read(tmp_path).empty


def test_an_age_is_refused_and_nulls_come_where_they_are_asked_for(rides, model):
    assert ask(app_of(model, rides.lookup(max_age=2 * 86400)), {"entities": [entity()]})[0] == 200
    status, said = ask(app_of(model, rides.lookup(max_age=3600)), {"entities": [entity()]})
    assert status == 422 and "trips" in said["error"] and "air" not in said["error"]
    partial = rides.model(pd.DataFrame({"temp": [1.5], "rate": [math.nan]}))
    app = app_of(partial, rides.lookup(missing="null"))
    assert ask(app, {"entities": [entity(3), entity(1, "z")]})[1]["predictions"] == [
        {"temp": 10.0, "rate": None}, {"temp": None, "rate": 0.1},
    ]  # fmt: skip
    status, _ = ask(app_of(model, rides.lookup(missing="null")), {"entities": [entity(3)]})
    assert status == 422, "an integer has no null"


def test_a_computed_feature_is_refused_when_its_input_is_missing(rides):
    app = app_of(rides.model(pd.DataFrame({"offer": [1.5], "temp": [1.0]})), rides.lookup("offered"))
    assert ask(app, {"entities": [entity(price=2.0)]})[1]["predictions"] == [{"offer": 0.2, "temp": 10.0}]
    status, said = ask(app, {"entities": [entity(7, price=2.0)]})
    assert status == 422 and "trips" in said["error"], "the view itself would make 0 of it"


def golden(rides: Rides, model: Any, **options: Any) -> Golden:
    frame = pd.DataFrame({"driver_id": [1, 2, 7], "city_id": "a", "temp": 1.0, "rate": 0.5, "done": 3, "active": 1.0})
    return with_entities(score_golden(model, "rides/1", frame, 10), rides.lookup(**options).spec(), model, frame)


def compare(app: PredictionApp, rows: Golden) -> float:
    class Handler(QuietHandler):
        def do_POST(self) -> None:
            status, content = asyncio.run(answer(app, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(QuietServer(Handler)) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        state = cast("Any", SimpleNamespace(route="/predict", rows_field="rows", probe="p"))
        return rows.compare(client, state, tolerance=1e-9)


def test_golden_entities_agree_and_a_fault_of_the_lookup_is_found(rides, model, monkeypatch):
    rows = golden(rides, model)
    assert compare(app_of(model, rides.lookup()), rows) == 0.0
    features: Any = OnlineLookup.features
    faults = {
        "another entity's": lambda self, entities: features(self, entities)[::-1],
        "older": lambda self, entities: [{**one, "rate": 7.0} for one in features(self, entities)],
        "named otherwise": lambda self, entities: [
            {**one, "rate": one["temp"], "temp": one["rate"] or 0.0} for one in features(self, entities)
        ],
    }
    for broken in faults.values():
        with monkeypatch.context() as patch, pytest.raises(DeploymentError, match="entities of the golden set differ"):
            patch.setattr(OnlineLookup, "features", broken)
            compare(app_of(model, rides.lookup()), rows)
    moved = Lookups._value
    with monkeypatch.context() as patch, pytest.raises(DeploymentError, match="entities of the golden set differ"):
        patch.setattr(Lookups, "_value", lambda self, name, value: moved(self, name, 0.5 if value == 0.1 else value))
        compare(app_of(model, rides.lookup()), rows)


def test_a_golden_set_without_keys_or_without_entities_of_today_verifies_nothing(rides, model):
    frame = pd.DataFrame({"temp": [1.0], "rate": 0.5, "done": 3, "active": 1.0})
    scored = score_golden(model, "rides/1", frame, 10)
    with pytest.raises(DeploymentError, match="lacks 'driver_id', 'city_id'"):
        with_entities(scored, rides.lookup().spec(), model, frame)
    strangers = with_entities(scored, rides.lookup().spec(), model, frame.assign(driver_id=7, city_id="a"))
    with pytest.raises(DeploymentError, match="of any of 1 entities"):
        compare(app_of(model, rides.lookup()), strangers)
    assert dataclasses.replace(strangers, entities=None) == scored


def test_what_is_written_meanwhile_is_read(rides, model):
    app = app_of(model, rides.lookup())
    assert ask(app, {"entities": [entity(1, "later")]})[0] == 422
    rides.write_city(["later"], [5.0])
    assert ask(app, {"entities": [entity(1, "later")]})[1]["predictions"][0]["temp"] == 5.0


def test_options_without_a_meaning_are_refused(rides):
    for options in ({"missing": "0"}, {"max_age": 0}, {"max_age": 5, "missing": "null"}):
        with pytest.raises(FeatureError, match="OnlineLookup: "):
            rides.lookup(**options)
