"""Records of things, their origin and their code, small enough to travel between tools as a tag.

A :class:`Record` is written twice, as Dagster metadata on the asset and as a tag, label or log field in the tool, so
that either side alone can answer after the other is gone. A :class:`Ref` names a thing in a tool; a record's
``upstream`` refs are the edges that :mod:`dagster_mlops.lineage` walks. A record's class is its *role* in a model's
life; the tool is data, so that a second tracker or registry writes the same role.
"""

from dagster_mlops.core.lazy_door import lazy_door
from dagster_mlops.provenance.answers import Accessible as Accessible
from dagster_mlops.provenance.answers import Answer as Answer
from dagster_mlops.provenance.answers import Deleted as Deleted
from dagster_mlops.provenance.answers import Faulty as Faulty
from dagster_mlops.provenance.answers import Inaccessible as Inaccessible
from dagster_mlops.provenance.answers import Unknown as Unknown
from dagster_mlops.provenance.credentials import mask_credentials as mask_credentials
from dagster_mlops.provenance.record import NAMESPACE as NAMESPACE
from dagster_mlops.provenance.record import Record as Record
from dagster_mlops.provenance.record import Ref as Ref
from dagster_mlops.provenance.record import raw_records as raw_records
from dagster_mlops.provenance.record import records_in as records_in
from dagster_mlops.provenance.roles import Commit as Commit
from dagster_mlops.provenance.roles import Dataset as Dataset
from dagster_mlops.provenance.roles import Deployment as Deployment
from dagster_mlops.provenance.roles import FeatureView as FeatureView
from dagster_mlops.provenance.roles import ModelVersion as ModelVersion
from dagster_mlops.provenance.roles import Package as Package
from dagster_mlops.provenance.roles import Prediction as Prediction
from dagster_mlops.provenance.roles import PredictionBatch as PredictionBatch
from dagster_mlops.provenance.roles import Report as Report
from dagster_mlops.provenance.roles import TrainingRun as TrainingRun
from dagster_mlops.provenance.roles import TrainingSet as TrainingSet
from dagster_mlops.provenance.schema import SCHEMA as SCHEMA

# All of it is loaded at once, because a record is read as the class of its role.
__getattr__, __dir__ = lazy_door(__name__)
