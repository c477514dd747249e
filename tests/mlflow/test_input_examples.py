"""The input example that is stored with a model holds no row of the training frame."""

from typing import Any

import mlflow
import pandas as pd
import polars as pl
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.models import Model
from sklearn.linear_model import LinearRegression

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.models import log_model
from dagster_mlops.mlflow.models.flavors import mixed_rows
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

ROWS = pd.DataFrame({"age": [41, 42, 43, 44, 45, 46], "income": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "city": list("abcdef")})


def test_no_row_of_the_example_is_a_row_of_the_frame_and_all_columns_keep_their_values_and_types():
    frame = ROWS.head(5).astype({"age": "Int64", "city": "category"}, copy=True)
    mixed = mixed_rows(frame)
    assert list(mixed.dtypes) == list(frame.dtypes) and list(mixed.columns) == list(frame.columns)
    assert all(sorted(mixed[name]) == sorted(frame[name]) for name in frame)
    assert not set(mixed.itertuples(index=False, name=None)) & set(frame.itertuples(index=False, name=None))
    other = mixed_rows(pl.DataFrame(ROWS.head(5)))
    assert other.rows() == list(mixed_rows(ROWS.head(5)).itertuples(index=False, name=None))


def test_the_rows_cannot_be_put_together_again():
    """Whoever knows how rows are mixed sees the same example, whichever value was in which row."""
    frame = pd.DataFrame({"a": [3, 1, 2], "b": list("xzy"), "c": [0.5, float("nan"), 0.1], "d": [None, "u", 1]})
    other = frame.assign(a=[1, 2, 3], c=[float("nan"), 0.1, 0.5])
    pd.testing.assert_frame_equal(mixed_rows(frame), mixed_rows(other))


def test_columns_of_one_name_and_wide_frames_keep_their_places():
    wide = pd.DataFrame([[row * 100 + column for column in range(23)] for row in range(5)])
    wide.columns = pd.Index(list("aabcdefghijklmnopqrstuv"))
    mixed = mixed_rows(wide)
    assert list(mixed.columns) == list(wide.columns)
    assert [[value % 100 for value in row] for row in mixed.to_numpy().tolist()] == [list(range(23))] * 5
    assert all(len({value // 100 for value in row}) == 5 for row in mixed.to_numpy().tolist())
    for same in (pd.DataFrame(), wide.head(1), [1, 2], wide.to_numpy()):
        assert mixed_rows(same) is same


@pytest.mark.parametrize("given", [False, True])
def test_a_stored_model_shows_mixed_rows_unless_the_rows_are_given(tmp_path, given):
    features, resource = ROWS[["age", "income"]], MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with resource.activate(), mlflow.start_run():
        options: dict[str, Any] = {"input_example": features.head(2)} if given else {}
        info = log_model(LinearRegression().fit(features, ROWS["income"]), features, **options)
        assert info
        folder = download_artifacts(artifact_uri=info.model_uri)
        stored: Any = Model.load(folder).load_input_example(folder)
    rows = set(features.itertuples(index=False, name=None))
    assert all((row in rows) == given for row in stored.itertuples(index=False, name=None))
