"""A training set once more, from the snapshot that its record names."""

from dagster_mlops.feast.rebuild.replay import find_record, rebuild

__all__ = [
    "find_record",
    "rebuild",
]
