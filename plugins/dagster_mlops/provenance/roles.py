"""The roles in a model's life: the facts of each record, its text, and the upstream records that it implies.

The default `tool` of a role is the one that writes it in this library. An id follows from the facts.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.provenance.record import Record, Ref, pairs, short


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Commit(Record, role="commit", id="{sha}", at="{repo}"):
    """A commit of the code that made something."""

    tool: str = "git"
    sha: str
    repo: str  # the repository's top-level folder
    authored: str = ""  # author date, ISO 8601
    author: str = ""
    subject: str = ""

    def title(self) -> str:
        return self.sha[:10]

    def _details(self) -> list[str]:
        return [self.subject, self.author, self.authored]


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(Record, role="dataset", id="{path}@{md5}", at="{repo}"):
    """A version of a file or folder. `md5` is its content hash and the asset's Dagster data version."""

    tool: str = "dvc"
    path: str
    md5: str
    repo: str
    rev: str = ""  # git commit that holds the pointer
    remote: str = ""
    rows: int | None = None
    bytes: int | None = None
    dirty: str = ""  # hash of the uncommitted diff of the code that made it, empty when clean
    code_commit: str = ""

    def title(self) -> str:
        return self.path

    def _details(self) -> list[str]:
        size = "" if self.bytes is None else _size(self.bytes)
        return [_text("{:,} rows", self.rows), size, f"md5 {self.md5[:12]}", _text("rev {:.10}", self.rev)]


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeatureView(Record, role="feature_view", made_from="dataset", id="{project}/{name}@{version:.16}", at="{repo}"):
    """One materialized window of a feature view; `version` hashes its definition and the window's rows."""

    tool: str = "feast"
    name: str
    project: str
    repo: str
    version: str
    start: str = ""  # ISO 8601, UTC
    end: str = ""
    rows: int | None = None

    def _details(self) -> list[str]:
        return [_text("{:,} rows", self.rows), _window(self.start, self.end)]


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainingSet(Record, role="training_set", made_from="feature_view"):
    """Point-in-time-correct features for an entity dataframe, through a feature service.

    `content_hash` hashes the rows and columns themselves, `snapshot` names what the registry keeps to rebuild them.
    """

    tool: str = "feast"
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

    def _identity(self) -> tuple[str, str]:
        name = f"{self.title()}@{self.registry_hash[:12]}+{self.entity_hash[:12]}"
        return name + (f"+{self.content_hash[:12]}" if self.content_hash else ""), self.repo

    def title(self) -> str:
        return f"{self.project}/{self.feature_service}"

    def _details(self) -> list[str]:
        return [_text("{:,} rows", self.rows), _window(self.start, self.end), f"registry {self.registry_hash[:12]}"]


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainingRun(Record, role="training_run", made_from="dataset", id="{run_id}", at="{tracking_uri}"):
    """A run that trained a model."""

    tool: str = "mlflow"
    run_id: str
    tracking_uri: str
    experiment: str = ""
    code_commit: str = ""
    dirty: str = ""
    lock_hash: str = ""
    files_hash: str = ""  # of its files that a rerun reads; empty for a run that has none
    python: str = ""
    platform: str = ""
    seed: int | None = None
    attempt: int = 0
    feature_service: str = ""
    registry_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    def _details(self) -> list[str]:
        code = self.code_commit and f"code {self.code_commit[:10]}{' + uncommitted' if self.dirty else ''}"
        return [pairs(self.metrics), code, _text("seed {}", self.seed), _text("python {}", self.python)]

    def missing(self, upstream: Iterable[Ref]) -> list[Ref]:
        has_code = self.code_commit or any(ref.role == Commit.role for ref in upstream)
        code = [] if has_code else [Ref.unknown(Commit.role, f"of training run {self.title()}")]
        return [*super().missing(upstream), *code]

    def implies(self, ref: Ref) -> Record | None:
        return _dataset(ref)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelVersion(Record, role="model_version", made_from="training_run", id="{name}/{version}", at="{tracking_uri}"):
    """A version of a registered model. `datasets` are the content hashes it was trained on, by dataset path."""

    tool: str = "mlflow"
    name: str
    version: str
    run_id: str = ""  # empty where no tracked run made it
    tracking_uri: str
    aliases: tuple[str, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""  # of its files, as they were registered; empty where no one took it

    def missing(self, upstream: Iterable[Ref]) -> list[Ref]:
        return [] if [*upstream] else super().missing(())  # a registry in git knows the commit, and no run

    def _details(self) -> list[str]:
        return [_text("alias {}", ", ".join(self.aliases)), pairs(self.metrics), _text("run {:.12}", self.run_id)]

    def implies(self, ref: Ref) -> Record | None:
        if ref.role == ModelVersion.role:  # that this one is a copy of
            name, _, version = ref.id.rpartition("/")
            facts = {"name": name, "version": version, "tracking_uri": ref.at, "run_id": "", "aliases": ()}
            datasets = tuple(Ref(Dataset.tool, Dataset.role, f"{path}@{md5}") for path, md5 in self.datasets.items())
            return _partial(ModelVersion, ref, self, **facts, upstream=datasets)
        if ref.role != TrainingRun.role:
            return _dataset(ref)
        upstream = tuple(Ref(Dataset.tool, Dataset.role, f"{path}@{md5}") for path, md5 in self.datasets.items())
        return _partial(TrainingRun, ref, self, run_id=ref.id, tracking_uri=ref.at, upstream=upstream)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Package(Record, role="package", made_from="model_version", id="{tag}", at="{home}"):
    """A model version packed with what serves it, such as a bento."""

    tool: str = "bentoml"
    tag: str
    home: str  # the store that holds it, such as a BENTOML_HOME
    model_name: str
    model_version: str
    run_id: str = ""
    datasets: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""  # of the files of the model, as in its record

    def model(self, tracking_uri: str) -> ModelVersion:
        """The version that it holds, in the registry at `tracking_uri`."""
        return ModelVersion(
            name=self.model_name, version=self.model_version, tracking_uri=tracking_uri, sha256=self.sha256
        )

    def _details(self) -> list[str]:
        return [f"model {self.model_name}/{self.model_version}"]

    def implies(self, ref: Ref) -> Record | None:
        if ref.role != ModelVersion.role:
            return None
        upstream = (Ref(TrainingRun.tool, TrainingRun.role, self.run_id, at=ref.at),) if self.run_id else ()
        facts = {"name": self.model_name, "version": self.model_version, "tracking_uri": ref.at, "upstream": upstream}
        return _partial(ModelVersion, ref, self, **facts)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Deployment(Record, role="deployment", made_from="package", id="{name}/{id}", at="{state_dir}"):
    """A package that serves traffic, or once did."""

    tool: str = "bentoml"
    name: str
    id: str
    package: str  # its tag
    model_name: str
    model_version: str
    url: str
    state_dir: str
    prediction_log: str = ""
    traffic: float = 1.0  # share of requests, 0..1
    started: str = ""  # ISO 8601, UTC
    stopped: str = ""
    golden_rows: int | None = None
    golden_max_difference: float | None = None

    def _details(self) -> list[str]:
        golden = ""
        if self.golden_rows is not None:
            golden = f"golden set {self.golden_rows:,} rows, largest difference {self.golden_max_difference}"
        share = "" if self.traffic == 1 else f"{self.traffic:.0%} of the traffic"
        times = [_text("since {}", self.started), _text("stopped {}", self.stopped)]
        return [self.url, share, *times, golden]

    def implies(self, ref: Ref) -> Record | None:
        if ref.role != Package.role:
            return None
        version = Ref(ModelVersion.tool, ModelVersion.role, f"{self.model_name}/{self.model_version}")
        upstream = (version,) if self.model_name else ()
        return _partial(Package, ref, self, tag=ref.id, home=ref.at, upstream=upstream)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PredictionBatch(Record, role="prediction_batch", made_from="model_version", id="{name}@{digest:.16}"):
    """Rows that one model version scored at once. The request id of each is ``name/…``.

    `digest` hashes the version and the rows, so that the same rows scored by another version are another batch. Its
    predictions are in the asset, and where it is named, in a prediction log.
    """

    tool: str = "dagster"
    name: str  # of asset and partition
    digest: str
    model_name: str
    model_version: str
    sha256: str = ""  # of the files of the model
    rows: int | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)  # content hashes of the rows, by dataset path or asset
    prediction_log: str = ""

    def title(self) -> str:
        return self.name

    def _details(self) -> list[str]:
        return [_text("{:,} rows", self.rows), f"model {self.model_name}/{self.model_version}"]

    def implies(self, ref: Ref) -> Record | None:
        if ref.role != ModelVersion.role:
            return _dataset(ref)
        facts = {"name": self.model_name, "version": self.model_version, "tracking_uri": ref.at, "datasets": {}}
        return _partial(ModelVersion, ref, self, **facts)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Prediction(Record, role="prediction", made_from="deployment", id="{request_id}", at="{prediction_log}"):
    """One row that a deployment answered, or a batch scored."""

    tool: str = "bentoml"
    request_id: str
    timestamp: str  # ISO 8601, UTC
    prediction_log: str
    deployment: str = ""
    package: str = ""
    model_name: str = ""
    model_version: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)  # of the model, that the client set
    trace_id: str = ""  # of W3C Trace Context
    seconds: float | None = None  # latency of the request

    def _details(self) -> list[str]:
        trace = [f"trace {self.trace_id}"] if self.trace_id else []
        return [self.timestamp, f"output {short(self.output)}", pairs(self.inputs), *trace]

    def implies(self, ref: Ref) -> Record | None:
        if ref.role != Deployment.role:
            return None
        name, _, deployment_id = ref.id.rpartition("/")
        upstream = (Ref(ref.tool, Package.role, self.package),) if self.package else ()
        facts = {"name": name, "id": deployment_id, "url": "", "state_dir": ref.at, "upstream": upstream}
        return _partial(Deployment, ref, self, **facts)


@lazy_dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Report(Record, role="report", id="{id}", at="{report}"):
    """A comparison of current data with a reference."""

    tool: str = "evidently"
    id: str
    report: str = ""  # path or URL of the HTML report
    reference: str = ""
    current: str = ""
    reference_rows: int | None = None
    current_rows: int | None = None
    drift_share: float | None = None
    drifted: tuple[str, ...] = ()
    passed: bool | None = None

    def _details(self) -> list[str]:
        share = _text("drift share {:.2f}", self.drift_share)
        columns = _text("drifted: {}", ", ".join(self.drifted))
        verdict = {True: "passed", False: "FAILED", None: ""}[self.passed]
        rows = f"{self.current_rows:,} rows against {self.reference_rows or 0:,}" if self.current_rows else ""
        return [verdict, share, columns, rows, self.report]


def _partial(role: type[Record], ref: Ref, downstream: Record, **facts: Any) -> Record:
    """The record of `ref` with `facts`, and with those of a record downstream that have the same names."""
    own = {spec.name for spec in dataclasses.fields(role)} - {spec.name for spec in dataclasses.fields(Record)}
    shared = {name: value for name, value in vars(downstream).items() if name in own}
    return role(tool=ref.tool, **{**shared, **facts})


def _dataset(ref: Ref) -> Dataset | None:
    if ref.role != Dataset.role:
        return None
    path, _, md5 = ref.id.rpartition("@")
    return Dataset(tool=ref.tool, path=path, md5=md5, repo=ref.at)


def _text(form: str, fact: Any) -> str:
    return "" if fact in ("", None) else form.format(fact)


def _window(start: str, end: str) -> str:
    return f"{start[:16] or '…'} to {end[:16] or '…'}" if start or end else ""


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
