"""Records of things, their origin and their code, small enough to travel between tools as a tag.

A :class:`Record` is written twice, as Dagster metadata on the asset and as a tag, label or log field in the tool, so
that either side alone can answer after the other is gone. A :class:`Ref` names a thing in a tool; a record's
``upstream`` refs are the edges that :mod:`dagster_mlops.lineage` walks. A record's class is its *role* in a model's
life; the tool is data, so that a second tracker or registry writes the same role.
"""

from dagster_mlops.provenance.answers import Accessible, Answer, Deleted, Faulty, Inaccessible
from dagster_mlops.provenance.credentials import mask_credentials
from dagster_mlops.provenance.record import NAMESPACE, Record, Ref, raw_records, records_in
from dagster_mlops.provenance.roles import (
    Commit,
    Dataset,
    Deployment,
    FeatureView,
    ModelVersion,
    Package,
    Prediction,
    Report,
    TrainingRun,
    TrainingSet,
)
from dagster_mlops.provenance.schema import SCHEMA

__all__ = [
    "NAMESPACE",
    "SCHEMA",
    "Accessible",
    "Answer",
    "Commit",
    "Dataset",
    "Deleted",
    "Deployment",
    "Faulty",
    "FeatureView",
    "Inaccessible",
    "ModelVersion",
    "Package",
    "Prediction",
    "Record",
    "Ref",
    "Report",
    "TrainingRun",
    "TrainingSet",
    "mask_credentials",
    "raw_records",
    "records_in",
]
