"""Warnings that only a tool can fix, each named once. Every other warning fails its test (pyproject.toml)."""

import pytest


def _ignore(*filters: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.filterwarnings(f"ignore:{each}") for each in filters]


# Feast, ibis, MLflow and BentoML use what their own dependencies have deprecated.
DEPRECATED = _ignore(":DeprecationWarning", ":FutureWarning")

# Feast closes no connection to SQLite, Postgres or Redis; DVC leaves its sqlite state to the garbage collector.
UNCLOSED = _ignore(":ResourceWarning", ":pytest.PytestUnraisableExceptionWarning")

# Feast says so each time that one is defined or called.
FEAST_EXPERIMENTAL = _ignore(
    "On demand feature view:RuntimeWarning",
    "Stream feature views are experimental:RuntimeWarning",
    "Saving dataset:RuntimeWarning",
)

# DVC's use of pygtrie.
DVC = _ignore("_NoneStep.value:DeprecationWarning")

# DVC's S3 remotes go through botocore.
BOTOCORE = _ignore("datetime.datetime.utcnow:DeprecationWarning")

# MLflow's queries under SQLAlchemy 2.1, and its type hints when mlflow.pyfunc is imported.
MLFLOW = _ignore(
    "The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning",
    ".*Any type hint is inferred as AnyType:UserWarning",
)

# MLflow gives hints as warnings.
MLFLOW_HINTS = _ignore("Hint. Inferred schema contains integer column:UserWarning", ":UserWarning:mlflow")

# MLflow and scikit-learn warn when they are imported.
ON_IMPORT = _ignore(":UserWarning")

# Optuna reports a value again for a trial that goes on after its process died, and drops connections to Postgres.
OPTUNA = _ignore(
    "The reported value is ignored because:UserWarning",
    ".*psycopg.Connection.*was deleted while still open:ResourceWarning",
)

# Observable assets, backfills and the loading of defs.yaml use API that Dagster calls beta, and a deprecated name of
# pydantic.
DAGSTER_BETA = _ignore(":dagster.BetaWarning", ".*parse_obj_as")
