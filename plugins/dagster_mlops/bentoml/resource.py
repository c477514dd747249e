"""The bento and model stores of one BENTOML_HOME, and the MLflow registry that its models come from."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from dagster_mlops.bentoml import upstream
from dagster_mlops.core.extras import extra
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dagster_mlops.bentoml.upstream import BentoStore, ModelStore


class BentomlResource(dg.ConfigurableResource):
    """Hands out BentoML's own stores, and the environment in which a BentoML process sees them.

    BentoML reads ``BENTOML_HOME`` once per process. A Dagster process may serve several homes and should not have its
    environment changed, so stores are opened by path, and whatever BentoML does on its own (build, serve) happens in a
    child process that gets :meth:`environment`.

        resources = {"bentoml": BentomlResource(home="state/bentoml", tracking_uri="sqlite:///state/mlflow.db")}
        resources["bentoml"].bentos().list()
    """

    home: str = Field(description="The BENTOML_HOME that holds bentos and models; made if it is not there.")
    tracking_uri: str = Field(description="The MLflow tracking URI whose registry the models come from.")
    build_timeout: float = Field(default=600, description="Seconds a model import and bento build may take.")

    @property
    def home_dir(self) -> Path:
        """`home` as an absolute path."""
        return Path(self.home).expanduser().resolve()

    @property
    def masked_uri(self) -> str:
        """`tracking_uri` as it may be shown."""
        return mask_credentials(self.tracking_uri)

    def bentos(self) -> "BentoStore":
        """BentoML's bento store of `home`."""
        return upstream.bento_store(self._store("bentos"))

    def models(self) -> "ModelStore":
        """BentoML's model store of `home`."""
        return upstream.model_store(self._store("models"))

    def environment(self) -> dict[str, str]:
        """The environment for a BentoML child process: this process's, pointed at `home` and `tracking_uri`."""
        pointed = {
            "BENTOML_HOME": str(self.home_dir),
            "BENTOML_DO_NOT_TRACK": "True",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
        }
        return {**os.environ, **pointed}

    def mlflow_client(self) -> "MlflowClient":
        """MLflow's own client of `tracking_uri`."""
        return extra("mlflow", extra="bentoml").MlflowClient(tracking_uri=self.tracking_uri)

    @contextlib.contextmanager
    def registry(self) -> Iterator[None]:
        """Within it, ``models:/name/version`` is a model of `tracking_uri`; MLflow's own setting is put back after."""
        mlflow = extra("mlflow", extra="bentoml")
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    def _store(self, name: str) -> Path:
        path = self.home_dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path
