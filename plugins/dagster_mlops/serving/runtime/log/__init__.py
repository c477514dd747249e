"""The prediction log: rows in segments of JSON lines, rotated to Parquet, written by many and read by anyone."""
