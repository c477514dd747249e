"""Libraries of tables, imported when something of them is first used, and types for type checkers only."""

from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast import FeatureService, FeatureStore
    from feast.base_feature_view import BaseFeatureView
else:
    BaseFeatureView = DuckDBPyConnection = FeatureService = FeatureStore = Any
    pa, pd = LazyModule("pyarrow", extra="feast"), LazyModule("pandas", extra="feast")
compute: Any = LazyModule("pyarrow.compute", extra="feast")

__all__ = ["BaseFeatureView", "DuckDBPyConnection", "FeatureService", "FeatureStore", "compute", "pa", "pd"]
