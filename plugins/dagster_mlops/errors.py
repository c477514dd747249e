"""Everything this library raises on purpose.

    DagsterMlopsError
    ├── MissingExtraError        a tool is used whose extra is not installed (also an ImportError)
    ├── ProvenanceError          a record cannot be read: unknown schema, malformed text
    ├── ChildError               a child process failed, took too long or answered nothing that can be read
    ├── ToolError                a tool is not installed, cannot be loaded, or cannot do what is asked of it
    ├── DatasetError             DVC: a dataset cannot be stored, found, locked or pushed
    ├── FeatureError             Feast: a view, service or training set cannot be served as asked
    │   └── MissingTableError    nothing has been written yet where a source points
    ├── TrackingError            MLflow: the tracking server or database cannot be used as configured
    ├── TrainingRunError         MLflow: a training run broke its contract (no model, no signature, …)
    ├── ModelVersionError        MLflow: a registered model, version or alias is not there
    ├── RegistryError            a model registry cannot be read or written as configured
    ├── HistoryError             the history of a model has been changed, or cannot be read or signed
    ├── EvaluationError          MLflow: a model version cannot be measured on the rows given
    ├── GateError                a blocking check has not passed, so the guarded asset refuses to run
    ├── DeploymentError          BentoML: a bento cannot be built, served, verified or routed to
    │   └── UnreachableClusterError  k8s: the API server of a cluster does not answer; it may later
    ├── PredictionError          serving: rows cannot be scored in a batch, or joined with their labels
    ├── MonitoringError          Evidently: a frame cannot be compared
    ├── ExecutorConfigError      k8s: a GPU profile or executor config that no cluster would accept
    ├── NotFoundError            lineage: no prediction or training run has the id or name that was given
    └── ReproductionError        lineage: a training cannot be run again, or fails when it is

A tool's own errors pass through with ``raise … from error``, so the upstream reason is never lost. Dagster stores and
shows what an error was raised from, so credentials in it are masked, too.
"""

from dagster_mlops.core.masked_errors import MaskedError


class DagsterMlopsError(MaskedError, Exception):
    """Base of every error raised here; catch it to catch them all.

    Credentials in its message are masked: messages quote tools, and go to logs, pages and terminals.
    """


class MissingExtraError(DagsterMlopsError, ImportError):
    """A tool is used whose extra is not installed."""


class ProvenanceError(DagsterMlopsError):
    """A provenance record cannot be read or written."""


class ToolError(DagsterMlopsError):
    """A tool is not installed, cannot be loaded, or cannot do what is asked of it."""


class DatasetError(DagsterMlopsError):
    """A DVC dataset cannot be stored, found, locked or pushed."""


class FeatureError(DagsterMlopsError):
    """A feature view, feature service or training set cannot be served as asked."""


class MissingTableError(FeatureError):
    """Nothing has been written yet where a source of features points."""


class TrackingError(DagsterMlopsError):
    """MLflow's tracking server or database cannot be reached, or not be used as configured."""


class TrainingRunError(DagsterMlopsError):
    """A training run broke its contract."""


class ModelVersionError(DagsterMlopsError):
    """A registered model, model version or alias is not there."""


class RegistryError(DagsterMlopsError):
    """A model registry cannot be read or written as configured."""


class HistoryError(DagsterMlopsError):
    """The history of a model has been changed, or cannot be read, signed or continued."""


class EvaluationError(DagsterMlopsError):
    """A model version cannot be measured on the rows that were given."""


class GateError(DagsterMlopsError):
    """A blocking check has not passed, so the guarded asset refuses to run."""


class DeploymentError(DagsterMlopsError):
    """A bento cannot be built, served, verified or routed to."""


class UnreachableClusterError(DeploymentError):
    """The API server of a cluster does not answer, or asks for patience; it may answer later."""


class PredictionError(DagsterMlopsError):
    """Rows cannot be scored in a batch, or predictions not be joined with their labels."""


class MonitoringError(DagsterMlopsError):
    """A dataframe cannot be checked or compared."""


class ExecutorConfigError(DagsterMlopsError):
    """A GPU profile or executor config is invalid."""


class NotFoundError(DagsterMlopsError):
    """No prediction or training run has the id or name that was given."""


class ReproductionError(DagsterMlopsError):
    """A training cannot be run again, or fails when it is."""
