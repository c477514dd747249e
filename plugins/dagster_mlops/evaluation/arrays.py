"""NumPy and pandas, imported when something of them is first used, and the type of a model that predicts."""

from typing import TYPE_CHECKING

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel
else:
    PyFuncModel = object
    np, pd = LazyModule("numpy"), LazyModule("pandas")

__all__ = ["PyFuncModel", "np", "pd"]
