"""Parts of the offline store: the as-of join in DuckDB, its sources, entity rows, results and files."""
