"""Libraries of tables, imported when something of them is first used, and types for type checkers only."""

from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import LazyModule

if TYPE_CHECKING:
    import pyarrow as pa
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.hash_info import HashInfo
else:
    HashFileDB = HashInfo = Repo = Any
    pa = LazyModule("pyarrow", extra="dvc")
csv: Any = LazyModule("pyarrow.csv", extra="dvc")
ds: Any = LazyModule("pyarrow.dataset", extra="dvc")
pandas: Any = LazyModule("pandas", extra="dvc")
parquet: Any = LazyModule("pyarrow.parquet", extra="dvc")
polars: Any = LazyModule("polars", extra="dvc")

__all__ = ["HashFileDB", "HashInfo", "Repo", "csv", "ds", "pa", "pandas", "parquet", "polars"]
