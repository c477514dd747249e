"""A verb says early, and in words, that the resource under its key cannot do what it asks."""

import dagster as dg
import pytest

from dagster_mlops.errors import ToolError
from dagster_mlops.evaluation import evaluation_asset, reference_asset
from dagster_mlops.promotion import promotion_asset


@dg.asset
def model() -> None: ...


@dg.asset
def rows() -> int:
    return 1


@pytest.mark.parametrize(
    "verb",
    [
        promotion_asset(candidate=model, registered_model_name="churn", metric="auc", registry="store"),
        evaluation_asset(name="evaluation", model=model, rows=rows, label="late", registry="store"),
        reference_asset(name="reference", model=model, rows=rows, label="late", registry="store"),
    ],
    ids=lambda asset: asset.key.to_user_string(),
)
def test_a_resource_that_holds_no_models_is_named_with_what_it_lacks(verb):
    with pytest.raises(ToolError, match=r"'store' is a str, which lacks models\(\) of ModelRegistry. Bind"):
        dg.materialize([model, rows, verb], resources={"store": "not a registry"})
