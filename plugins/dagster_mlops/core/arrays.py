"""Libraries of arrays and tables, imported when something of them is first used, and the type of a model."""

from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from mlflow.pyfunc import PyFuncModel
else:
    PyFuncModel = object
    np, pa, pd = LazyModule("numpy"), LazyModule("pyarrow"), LazyModule("pandas")
compute: Any = LazyModule("pyarrow.compute")

__all__ = ["PyFuncModel", "compute", "np", "pa", "pd"]
