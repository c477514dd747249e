"""The parity gate: equal stores pass, and whatever was planted in the online store fails and names the feature."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from dagster_mlops.feast import FeastResource, online_offline_parity_check
from dagster_mlops.feast.offline.source import Window, latest_events
from dagster_mlops.feast.online.materialization import alone, materialize
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.FEAST_EXPERIMENTAL,
]

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SETTINGS = """
project: shop
provider: local
registry: {{registry_type: sql, path: "sqlite:///{root}/registry.db", cache_ttl_seconds: 0}}
online_store: {{type: sqlite, path: {root}/online.db}}
offline_store: {{type: dagster_mlops.feast.offline_store.AsofOfflineStore}}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String, UnixTimestamp

def folder(name):
    path = {root!r} + "/" + name
    return FileSource(name=name, path=path, file_format=ParquetFormat(), timestamp_field="event_timestamp")

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
visits = FeatureView(
    name="visits", entities=[user], ttl=timedelta(days=2), source=folder("visits"),
    schema=[Field(name="amount", dtype=Float64), Field(name="zeal", dtype=Float32), Field(name="pages", dtype=Int64),
            Field(name="browser", dtype=String), Field(name="token", dtype=Bytes), Field(name="member", dtype=Bool),
            Field(name="since", dtype=UnixTimestamp), Field(name="scores", dtype=Array(Float64)),
            Field(name="words", dtype=Array(String))],
)
clicks = FeatureView(
    name="clicks", entities=[user], ttl=timedelta(days=9), schema=[Field(name="clicked", dtype=Int64)],
    source=PushSource(name="clicks_push", batch_source=folder("clicks")),
)
weather = FeatureView(name="weather", entities=[], source=folder("weather"), schema=[Field(name="rain", dtype=Float64)])
basket = RequestSource(name="basket", schema=[Field(name="price", dtype=Float64)])

@on_demand_feature_view(sources=[visits[["amount", "pages"]], basket], schema=[Field(name="share", dtype=Float64)])
def price_share(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"share": (inputs["price"] / inputs["amount"]).fillna(-1.0)}})

@on_demand_feature_view(sources=[basket], schema=[Field(name="cents", dtype=Float64)], mode="python")
def price_cents(inputs):
    return {{"cents": [value * 100 for value in inputs["price"]]}}

@on_demand_feature_view(sources=[basket], schema=[Field(name="rank", dtype=Float64)])
def price_rank(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"rank": inputs["price"].rank()}})

usage = FeatureService(name="usage", features=[visits])
pushes = FeatureService(name="pushes", features=[clicks])
skies = FeatureService(name="skies", features=[weather])
prices = FeatureService(name="prices", features=[visits[["pages"]], price_share, price_cents])
ranks = FeatureService(name="ranks", features=[price_rank])
"""


def visits(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    """A frame of events (user, days since START, amount); what follows from the amount is missing for user 3."""
    user, days, amount = zip(*rows, strict=True)
    frame = pd.DataFrame({"user_id": user, "amount": amount})
    frame["event_timestamp"] = pd.to_datetime([START + DAY * day for day in days]).as_unit("us")
    frame["zeal"] = (frame["amount"] / 3).astype("float32")
    frame["pages"] = frame["amount"].astype("Int64").mask(frame["user_id"] == 3)
    frame["browser"] = [None if u == 3 else f"b{u}" for u in user]
    frame["token"] = [None if u == 3 else bytes([0, u % 256]) for u in user]
    frame["member"] = [None if u == 3 else u % 2 == 0 for u in user]
    frame["since"] = frame["event_timestamp"] - pd.Timedelta("1.5s")
    frame["scores"] = [None if u == 3 else [a, a / 3] for u, a in zip(user, amount, strict=True)]
    frame["words"] = [None if u == 3 else ["x", str(a)] for u, a in zip(user, amount, strict=True)]
    return frame


class Shop:
    """A Feast repository with stored, pushed and on-demand views, and an asset for the gate."""

    def __init__(self, root: Path):
        self.root, self.repo = root, root / "repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text(SETTINGS.format(root=root))
        (self.repo / "features.py").write_text(DEFINITIONS.format(root=str(root)))
        self.reset_sources()
        self.feast = FeastResource(repo=str(self.repo))
        self.feast.apply()

    def reset_sources(self) -> None:
        for name in ("visits", "clicks", "weather"):
            (self.root / name).mkdir(exist_ok=True)
            for file in (self.root / name).glob("*.parquet"):
                file.unlink()
        events = [(user, 0.3 * user, 10.0 + user) for user in range(30)]
        visits([*events, (1, 8.5, 99.0)]).to_parquet(self.root / "visits" / "a.parquet", index=False)
        self.clicks([(user, 1.0, user) for user in range(5)]).to_parquet(
            self.root / "clicks" / "a.parquet", index=False
        )
        rain = pd.DataFrame({"event_timestamp": pd.to_datetime([START]).as_unit("us"), "rain": [0.5]})
        rain.to_parquet(self.root / "weather" / "a.parquet", index=False)

    @staticmethod
    def clicks(rows: list[tuple[int, float, int]]) -> pd.DataFrame:
        user, days, clicked = zip(*rows, strict=True)
        moments = pd.to_datetime([START + DAY * day for day in days]).as_unit("us")
        return pd.DataFrame({"user_id": user, "event_timestamp": moments, "clicked": clicked})

    def load(self, *views: str, until: float = 10) -> None:
        store = self.feast.store()
        for view in views or ("visits", "clicks", "weather"):
            with alone(store, self.repo, view, 60):
                materialize(store, view, Window(START, START + DAY * until))

    def plant(self, view: str, frame: pd.DataFrame) -> None:
        self.feast.store().write_to_online_store(view, frame)

    def sql(self, statement: str, *values: Any) -> int:
        with sqlite3.connect(self.root / "online.db") as db:
            done = db.execute(statement, values).rowcount
        db.close()
        return done

    def verdict(self, service: str, value: Any = None, **options: Any) -> dg.AssetCheckEvaluation:
        @dg.asset(io_manager_key="files")
        def training_set():
            return value

        check = online_offline_parity_check(asset=training_set, feature_service=service, **options)
        resources = {"feast": self.feast, "files": dg.FilesystemIOManager(base_dir=str(self.root / "io"))}
        result = dg.materialize([training_set, check], resources=resources, raise_on_error=False)
        [evaluation] = result.get_asset_check_evaluations()
        assert "feast/error" not in evaluation.metadata, evaluation.metadata["feast/error"]
        return evaluation


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("parity"))


@pytest.fixture
def shop(applied):
    """The applied shop with sources and online store as at first: an apply takes seconds."""
    applied.reset_sources()
    for view in ("visits", "clicks", "weather"):
        applied.sql(f"DELETE FROM shop_{view}")
    applied.load()
    return applied


def rows_of(evaluation: dg.AssetCheckEvaluation) -> dict[str, dict[str, Any]]:
    table: Any = evaluation.metadata["feast/parity"]
    return {row.data["feature"]: row.data for row in table.records}


def differing(evaluation: dg.AssetCheckEvaluation) -> dict[str, str]:
    return {name: row["example"] for name, row in rows_of(evaluation).items() if row["different"]}


def test_equal_stores_pass_for_every_type_of_value_missing_and_expired_ones_too(shop):
    evaluation = shop.verdict("usage")
    rows = rows_of(evaluation)
    assert evaluation.passed and evaluation.blocking, evaluation.metadata
    assert len(rows) == 9 and {row["compared"] for row in rows.values()} == {30}
    assert {row["expired"] for row in rows.values()} == {26}  # at day 10 with a ttl of two days
    assert evaluation.metadata["feast/compared_values"].value == 270
    assert shop.verdict("skies").passed, "a view without entities"


PLANTED = {
    "amount": 7.0, "zeal": 7.0, "pages": 7, "browser": "b8", "token": b"\0\1\0", "member": True,
    "since": pd.Timestamp(START), "scores": [17.0, 5.0], "words": ["17.0", "x"],
}  # fmt: skip


def test_one_wrong_value_of_each_type_fails_and_names_its_feature_and_entity(shop):
    users = dict(zip(PLANTED, range(7, 25, 2), strict=True))
    for feature, user in users.items():
        event = visits([(user, 0.3 * user, 10.0 + user)])
        event[feature] = [PLANTED[feature]]
        shop.plant("visits", event)
    evaluation = shop.verdict("usage")
    found = differing(evaluation)
    assert not evaluation.passed and found.keys() == {f"visits:{feature}" for feature in PLANTED}
    for feature, user in users.items():
        assert rows_of(evaluation)[f"visits:{feature}"]["different"] == 1
        assert found[f"visits:{feature}"].startswith(f"user_id={user}: offline ")
    assert "visits:amount (1)" in (evaluation.description or "")


def test_a_missing_key_a_lost_feature_and_a_value_of_another_type_fail(shop):
    every = {"amount", "zeal", "pages", "browser", "token", "member", "since", "scores", "words"}
    assert shop.sql("DELETE FROM shop_visits WHERE feature_name = 'zeal'") == 30
    assert {name.partition(":")[2] for name in differing(shop.verdict("usage"))} == {"zeal"}
    shop.load("visits")
    text = ValueProto(string_val="17").SerializeToString()  # where numbers should be; Feast serves it as it is
    shop.sql("UPDATE shop_visits SET value = ? WHERE feature_name = 'pages'", text)
    assert list(differing(shop.verdict("usage"))) == ["visits:pages"]
    shop.sql("DELETE FROM shop_visits")
    found = differing(shop.verdict("usage"))
    assert {name.partition(":")[2] for name in found} == every
    assert "from nothing instead of 2024-01-" in found["visits:amount"]


def test_values_of_another_event_are_stale_or_made_up_even_where_they_are_equal(shop):
    shop.plant("visits", visits([(7, 2.0, 17.0)]))  # the real one is of day 2.1
    found = differing(shop.verdict("usage"))
    assert "from 2024-01-03T00:00:00+00:00 instead of 2024-01-03T02:24:00+00:00" in found["visits:amount"]
    shop.load("visits")
    shop.plant("visits", visits([(7, 9.9, 17.0)]))  # would no longer have expired
    assert "from 2024-01-10T21:36:00+00:00 instead of" in differing(shop.verdict("usage"))["visits:amount"]


@pytest.mark.thorough
def test_rows_that_arrive_late_make_the_online_store_stale_until_they_are_loaded(shop):
    visits([(7, 5.0, 50.0)]).to_parquet(shop.root / "visits" / "late.parquet", index=False)
    found = differing(shop.verdict("usage"))
    assert "user_id=7: offline 50.0, online 17.0" in found["visits:amount"]
    shop.load("visits")
    assert shop.verdict("usage").passed
    visits([(8, 12.0, 60.0)]).to_parquet(shop.root / "visits" / "next.parquet", index=False)
    assert shop.verdict("usage").passed, "what lies beyond the watermark was never promised"


def test_numbers_may_differ_by_the_tolerance(shop):
    shop.plant("visits", visits([(7, 2.1, 17.0)]).assign(amount=17.0 * 1.001))
    bad = rows_of(shop.verdict("usage"))["visits:amount"]
    assert bad["different"] == 1 and bad["largest_difference"] == pytest.approx(0.017)
    assert shop.verdict("usage", tolerance=0.01).passed


def test_what_was_pushed_is_compared_as_far_as_the_source_reaches(shop):
    newer = shop.clicks([(1, 11.0, 100), (2, 11.0, 200)])
    shop.feast.store().push("clicks_push", newer)
    evaluation = shop.verdict("pushes")
    row = rows_of(evaluation)["clicks:clicked"]
    assert evaluation.passed and (row["compared"], row["ahead"]) == (3, 2)
    newer.to_parquet(shop.root / "clicks" / "pushed.parquet", index=False)
    assert rows_of(shop.verdict("pushes"))["clicks:clicked"]["compared"] == 5
    shop.feast.store().push("clicks_push", newer.assign(clicked=[100, 201]))
    assert differing(shop.verdict("pushes")) == {"clicks:clicked": "user_id=2: offline 200.0, online 201"}


REQUESTS = pd.DataFrame({"user_id": [1, 7, 25, 28, 28, 404], "price": [9.9, 3.0, 1.0, 2.0, 4.0, 5.0]})


def test_on_demand_features_are_computed_alike_on_both_sides_from_expired_and_missing_inputs_too(shop):
    for requests in (REQUESTS, lambda: REQUESTS[["price"]]):
        evaluation = shop.verdict("prices", request_data=requests)
        rows = rows_of(evaluation)
        assert evaluation.passed, (evaluation.description, rows)
        assert rows["price_share:share"]["compared"] == 6 and rows["price_cents:cents"]["compared"] >= 5
    assert shop.verdict("prices", REQUESTS).passed, "the value of the asset, where no request data are given"
    served = shop.feast.online_features(REQUESTS, "prices", at=START + 10 * DAY)
    offline = shop.feast.historical_features(REQUESTS.assign(event_timestamp=START + 10 * DAY), "prices")
    assert served["share"].tolist() == offline["share"].tolist() and served["share"][1] == -1.0
    assert shop.feast.online_features(REQUESTS, "prices")["share"][1] == 3.0 / 17.0, "what Feast itself serves"


def test_on_demand_features_fail_on_wrong_inputs_and_on_code_that_looks_at_its_neighbours(shop):
    shop.plant("visits", visits([(28, 8.4, 40.0)]))
    found = differing(shop.verdict("prices", request_data=REQUESTS))
    assert {"price_share:share", "visits:pages"} == set(found) and "user_id=28" in found["price_share:share"]
    found = differing(shop.verdict("ranks", request_data=REQUESTS))
    assert "online 1.0" in found["price_rank:rank"]


@pytest.mark.thorough
def test_values_that_other_code_computed_at_training_fail_and_name_the_on_demand_feature(shop):
    trained = shop.feast.historical_features(REQUESTS.assign(event_timestamp=START + 8.5 * DAY), "prices")
    trained = trained.assign(amount=[99.0, None, 35.0, 38.0, 38.0, None])
    assert shop.verdict("prices", trained).passed
    found = differing(shop.verdict("prices", trained.assign(cents=trained["cents"] * 1.01)))
    assert list(found) == ["price_cents:cents"] and "trained on" in found["price_cents:cents"]


def test_the_sample_has_the_newest_and_the_oldest_and_depends_on_the_seed_alone(shop):
    store = shop.feast.store()
    view = store.get_feature_view("visits")

    def users(seed: int) -> list[int]:
        window = Window(START, START + 10 * DAY)
        return latest_events(store, view, [window], sample=8, seed=seed)["user_id"].tolist()

    assert users(1) == users(1) != users(2)
    assert len(users(1)) == 8 and {29, 1, 0, 2} <= set(users(1)) & set(users(2))
