"""What the offline store is made of: the as-of join in DuckDB, its sources, entity rows, results and files."""
