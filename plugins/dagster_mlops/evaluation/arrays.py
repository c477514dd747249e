"""NumPy and pandas, imported when something of them is first used."""

from typing import TYPE_CHECKING

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
else:
    np, pd = LazyModule("numpy", extra="mlflow"), LazyModule("pandas", extra="mlflow")

__all__ = ["np", "pd"]
