"""Libraries of arrays and tables, imported when something of them is first used, and the type of a model."""

from typing import TYPE_CHECKING

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as compute
    from mlflow.pyfunc import PyFuncModel
else:
    PyFuncModel = object
    np, pd = LazyModule("numpy"), LazyModule("pandas")
    pa, compute = LazyModule("pyarrow"), LazyModule("pyarrow.compute")

__all__ = ["PyFuncModel", "compute", "np", "pa", "pd"]
