"""Rows on which a server tries a model before it is ready."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .outputs import records_of
from .schema import features_of_model

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

MOST = 200
_logger = logging.getLogger("bentoml.dagster_mlops")


def examples_of(model: "PyFuncModel", folder: Path) -> list[dict[str, Any]]:
    """Rows of the input example that was logged with the model.

    None are better than ones that the signature does not allow: they are left out, and a warning says so.
    """
    example: Any = model.metadata.load_input_example(str(folder))
    if not hasattr(example, "columns"):
        _logger.warning("%s has no example of its rows, so that it is asked through MLflow", folder)
        return []
    rows = records_of(example.head(MOST))
    try:
        features_of_model(model).checked(rows)
    except ValueError as error:
        _logger.warning("the example of %s does not fit its signature: %s", folder, error)
        return []
    return rows
