"""Rebuilds of training sets from the snapshot that their record names."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.feast.rebuild.replay import find_record as find_record
    from dagster_mlops.feast.rebuild.replay import rebuild as rebuild

__getattr__, __dir__ = lazy_door(__name__)
