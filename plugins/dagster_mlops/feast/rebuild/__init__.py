"""Rebuilds of training sets from the snapshot that their record names."""

from dagster_mlops.feast.rebuild.replay import find_record, rebuild

__all__ = ["find_record", "rebuild"]
