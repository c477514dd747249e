"""The record that crosses tools: what was made, from what, by which code, small enough to travel as a tag.

A :class:`Record` is written twice, as Dagster metadata on the asset and as a tag, label or log field in the tool, so
that either side alone can answer after the other is gone. A :class:`Ref` names a thing in a tool; a record's
``upstream`` refs are the edges that :mod:`dagster_mlops.lineage` walks.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, get_origin

import dagster as dg

from dagster_mlops.errors import ProvenanceError

SCHEMA = 1
NAMESPACE = "dagster_mlops"

_R = TypeVar("_R", bound="Record")
_KINDS: dict[str, type["Record"]] = {}
# Alone before the @ stands a token in web addresses, elsewhere a user, a container (abfss) or a bucket (s3://name@v1).
# Databases take a password with a slash as it is. What looks like a port is none.
_CREDENTIALS = re.compile(
    r"(?:(?<=http://)|(?<=https://))[^/\s]*@"
    r"|(?<=://)(?:[^/\s:@\[]*:[^/\s]*@|[^/\s:@\[]+:(?!\d{2,5}(?:[/?#\s]|$))[^@\s]*@(?:[^/\s]*@)?)"
)
_SECRET_PARAMETERS = re.compile(r"(?i)([?&;][\w.-]*(?:password|passwd|pwd|token|secret|signature|sig|key)=)[^&;#\s]+")


def mask_credentials(text: str) -> str:
    """Replace the user and password of every URL in `text`, and secret-looking query parameters.

    >>> mask_credentials("postgresql://ml:secret@db/mlflow")
    'postgresql://***@db/mlflow'
    >>> mask_credentials("postgresql://ml:a/b@db/mlflow, http://mlflow:5000/delay@champion")
    'postgresql://***@db/mlflow, http://mlflow:5000/delay@champion'
    >>> mask_credentials("https://store/logs?account=ml&access_token=secret")
    'https://store/logs?account=ml&access_token=***'
    """
    return _SECRET_PARAMETERS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


@dataclass(frozen=True, order=True)
class Ref:
    """Names one thing in one tool, well enough to ask for it months later from another process.

    `tool` is the name of a tool (entry-point group ``dagster_mlops.tools``), `id` the tool's own identifier and
    `at` where the tool keeps it: a tracking URI, a repository, a model store. Credentials in `at` are masked.

    >>> str(Ref("mlflow", "model_version", "delay/3", at="sqlite:///mlflow.db"))
    'mlflow:model_version:delay/3'
    """

    tool: str
    kind: str
    id: str
    at: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", mask_credentials(self.at))

    def __str__(self) -> str:
        return f"{self.tool}:{self.kind}:{self.id}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One step of a model's life. Subclasses name the facts; `ref` names the thing itself.

    Credentials in text fields (a tracking URI, a remote, a repository) are masked, because a record is copied into
    metadata, tags and logs.

    >>> made = Dataset(path="raw/flights.parquet", md5="9f…", repo="/data", rows=336776, bytes=9000000)
    >>> Record.from_json(made.to_json()) == made
    True
    """

    tool: ClassVar[str] = ""
    kind: ClassVar[str] = ""

    upstream: tuple[Ref, ...] = ()
    dagster_run_id: str = ""
    dagster_asset: str = ""
    dagster_partition: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        for fact in dataclasses.fields(self):
            value = getattr(self, fact.name)
            if isinstance(value, str):
                object.__setattr__(self, fact.name, mask_credentials(value))

    @property
    def ref(self) -> Ref:
        """The thing this record describes."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, empty fields left out, with ``schema`` and ``kind``."""
        facts = {k: v for k, v in dataclasses.asdict(self).items() if v not in ("", None, (), {}, [])}
        return {"schema": SCHEMA, "kind": self.kind, **json.loads(json.dumps(facts, default=str))}

    def to_json(self) -> str:
        """One line of JSON: what is stored as a tag in a tool."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Record":
        """Read a record of any kind.

        Fields of a later minor version are ignored.

        Raises:
            ProvenanceError: `data` has another schema, an unknown kind, or lacks a required field.
        """
        schema, kind = data.get("schema"), data.get("kind")
        if schema != SCHEMA:
            raise ProvenanceError(f"record has schema {schema!r}, this version reads {SCHEMA}. Upgrade dagster-mlops.")
        if kind not in _KINDS:
            raise ProvenanceError(f"unknown record kind {kind!r}; known: {', '.join(sorted(_KINDS))}.")
        cls = _KINDS[kind]
        # JSON has no tuples.
        tuples = {f.name: get_origin(f.type) is tuple for f in dataclasses.fields(cls)}
        facts: dict[str, Any] = {
            k: tuple(v) if tuples[k] and isinstance(v, list) else v for k, v in data.items() if k in tuples
        }
        try:
            facts["upstream"] = tuple(Ref(**ref) for ref in facts.get("upstream", ()))
            return cls(**facts)
        except TypeError as error:
            raise ProvenanceError(f"a {kind} record is malformed: {error}") from error

    @staticmethod
    def from_json(text: str) -> "Record":
        """Read what :meth:`to_json` wrote.

        Raises:
            ProvenanceError: the text is no JSON object, or :meth:`from_dict` refuses it.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ProvenanceError(f"a record is not JSON: {text[:80]!r}") from error
        if not isinstance(data, dict):
            raise ProvenanceError(f"a record is not a JSON object: {text[:80]!r}")
        return Record.from_dict(data)

    def to_metadata(self) -> dict[str, Any]:
        """The record as Dagster metadata: each fact as ``<tool>/<field>``, the whole under ``dagster_mlops/<kind>``."""
        skip = {"upstream", "dagster_run_id", "dagster_asset", "dagster_partition"}
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skip}
        # Dagster takes dicts and lists as metadata, but no other mapping and no tuple.
        plain = {
            k: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for k, v in facts.items()
        }
        flat = {f"{self.tool}/{name}": value for name, value in plain.items() if value not in ("", None, [], {})}
        return {**flat, f"{NAMESPACE}/{self.kind}": dg.MetadataValue.json(self.to_dict())}

    @classmethod
    def from_metadata(cls: type[_R], metadata: Mapping[str, Any]) -> _R | None:
        """The record of this class in an asset's metadata, or None.

        Raises:
            ProvenanceError: there is one, but it cannot be read.
        """
        for record in records_in(metadata):
            if isinstance(record, cls):
                return record
        return None


@dataclass(frozen=True, kw_only=True)
class CodeCommit(Record):
    """A git commit of the code that made something."""

    tool: ClassVar[str] = "git"
    kind: ClassVar[str] = "commit"

    sha: str
    repo: str  # the repository's top-level folder
    authored: str = ""  # author date, ISO 8601
    author: str = ""
    subject: str = ""

    @property
    def ref(self) -> Ref:
        return Ref("git", "commit", self.sha, at=self.repo)


@dataclass(frozen=True, kw_only=True)
class Dataset(Record):
    """A file or folder versioned by DVC. `md5` is DVC's content hash and the asset's Dagster data version."""

    tool: ClassVar[str] = "dvc"
    kind: ClassVar[str] = "dataset"

    path: str
    md5: str
    repo: str
    rev: str = ""  # git commit that holds the pointer
    remote: str = ""
    rows: int | None = None
    bytes: int | None = None
    dirty: str = ""  # hash of the uncommitted diff of the code that made it, empty when clean
    code_commit: str = ""

    @property
    def ref(self) -> Ref:
        return Ref("dvc", "dataset", f"{self.path}@{self.md5}", at=self.repo)


@dataclass(frozen=True, kw_only=True)
class FeatureView(Record):
    """One materialized window of a Feast feature view; `version` hashes its definition and the window's rows."""

    tool: ClassVar[str] = "feast"
    kind: ClassVar[str] = "feature_view"

    name: str
    project: str
    repo: str
    version: str
    start: str = ""  # ISO 8601, UTC
    end: str = ""
    rows: int | None = None

    @property
    def ref(self) -> Ref:
        return Ref("feast", "feature_view", f"{self.project}/{self.name}@{self.version[:16]}", at=self.repo)


@dataclass(frozen=True, kw_only=True)
class TrainingSet(Record):
    """Point-in-time-correct features for an entity dataframe, through a feature service.

    `content_hash` hashes the rows and columns themselves, `snapshot` names what the registry keeps to make them again.
    """

    tool: ClassVar[str] = "feast"
    kind: ClassVar[str] = "training_set"

    feature_service: str
    project: str
    repo: str
    registry_hash: str
    entity_hash: str
    start: str = ""  # first and last event timestamp of the entity dataframe, ISO 8601, UTC
    end: str = ""
    rows: int | None = None
    content_hash: str = ""
    snapshot: str = ""
    point_in_time: str = "latest feature value at or before the event timestamp, within the view's ttl"

    @property
    def ref(self) -> Ref:
        name = f"{self.project}/{self.feature_service}@{self.registry_hash[:12]}+{self.entity_hash[:12]}"
        name += f"+{self.content_hash[:12]}" if self.content_hash else ""
        return Ref("feast", "training_set", name, at=self.repo)


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Record):
    """An MLflow run that trained a model."""

    tool: ClassVar[str] = "mlflow"
    kind: ClassVar[str] = "training_run"

    run_id: str
    tracking_uri: str
    experiment: str = ""
    code_commit: str = ""
    dirty: str = ""
    lock_hash: str = ""
    python: str = ""
    platform: str = ""
    seed: int | None = None
    attempt: int = 0
    feature_service: str = ""
    registry_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        return Ref("mlflow", "training_run", self.run_id, at=self.tracking_uri)


@dataclass(frozen=True, kw_only=True)
class ModelVersion(Record):
    """A version of a registered model. `datasets` are the content hashes it was trained on, by dataset path."""

    tool: ClassVar[str] = "mlflow"
    kind: ClassVar[str] = "model_version"

    name: str
    version: str
    run_id: str
    tracking_uri: str
    aliases: tuple[str, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        return Ref("mlflow", "model_version", f"{self.name}/{self.version}", at=self.tracking_uri)


@dataclass(frozen=True, kw_only=True)
class Bento(Record):
    """A bento built from a model version."""

    tool: ClassVar[str] = "bentoml"
    kind: ClassVar[str] = "bento"

    tag: str
    home: str  # the BENTOML_HOME that holds it
    model_name: str
    model_version: str
    run_id: str = ""
    datasets: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        return Ref("bentoml", "bento", self.tag, at=self.home)


@dataclass(frozen=True, kw_only=True)
class Deployment(Record):
    """A bento that serves traffic, or once did."""

    tool: ClassVar[str] = "bentoml"
    kind: ClassVar[str] = "deployment"

    name: str
    id: str
    bento: str
    model_name: str
    model_version: str
    url: str
    state_dir: str
    prediction_log: str
    traffic: float = 1.0  # share of requests, 0..1
    started: str = ""  # ISO 8601, UTC
    stopped: str = ""
    golden_rows: int | None = None
    golden_max_difference: float | None = None

    @property
    def ref(self) -> Ref:
        return Ref("bentoml", "deployment", f"{self.name}/{self.id}", at=self.state_dir)


@dataclass(frozen=True, kw_only=True)
class Prediction(Record):
    """One row that a deployment answered."""

    tool: ClassVar[str] = "bentoml"
    kind: ClassVar[str] = "prediction"

    request_id: str
    timestamp: str  # ISO 8601, UTC
    prediction_log: str
    deployment: str = ""
    bento: str = ""
    model_name: str = ""
    model_version: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None

    @property
    def ref(self) -> Ref:
        return Ref("bentoml", "prediction", self.request_id, at=self.prediction_log)


@dataclass(frozen=True, kw_only=True)
class DriftReport(Record):
    """A comparison of current data with a reference."""

    tool: ClassVar[str] = "evidently"
    kind: ClassVar[str] = "drift_report"

    id: str
    report: str = ""  # path or URL of the HTML report
    reference: str = ""
    current: str = ""
    reference_rows: int | None = None
    current_rows: int | None = None
    drift_share: float | None = None
    drifted: tuple[str, ...] = ()
    passed: bool | None = None

    @property
    def ref(self) -> Ref:
        return Ref("evidently", "drift_report", self.id, at=self.report)


@dataclass(frozen=True)
class Accessible:
    """The tool has the thing, and this is its record."""

    record: Record
    bucket: ClassVar[str] = "accessible"


@dataclass(frozen=True)
class Inaccessible:
    """The tool cannot be asked now, or holds the pointer but not the content: a dead server, a lost remote."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "inaccessible"


@dataclass(frozen=True)
class Deleted:
    """The tool answers, and says that the thing is gone. `record` is what is still known of it."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "deleted"


@dataclass(frozen=True)
class Faulty:
    """The tool answers, but what it says is damaged or contradicts the ref, e.g. another hash under the same path."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "faulty"


Answer = Accessible | Inaccessible | Deleted | Faulty


def records_in(metadata: Mapping[str, Any]) -> Iterator[Record]:
    """Every provenance record in an asset's metadata.

    Raises:
        ProvenanceError: one of them cannot be read.
    """
    for key, value in metadata.items():
        # An asset that makes several things of one kind adds a name: dagster_mlops/dataset/models/cnn.
        namespace, kind = [*key.split("/", 2), ""][:2]
        if namespace == NAMESPACE and kind in _KINDS:
            yield Record.from_dict(getattr(value, "value", value))
