"""Checkpoints in the artifact store of a run, from which a training that was stopped continues."""

import json
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.arrays import np
from dagster_mlops.core.environment import environment
from dagster_mlops.core.files import digest
from dagster_mlops.core.inside import inside
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import ArtifactRepository, mlflow, torch
from dagster_mlops.mlflow.server.client import artifact_store
from dagster_mlops.provenance import NAMESPACE, mask_credentials

FOLDER = "checkpoints"
RESUMED = f"{NAMESPACE}.resumed_step"  # tag of a run: number of finished steps when its last attempt started
_RETRIES = "3"  # of a request that stores a checkpoint: some 12 seconds


class Checkpoints:
    """Checkpoints of MLflow's active run: saved during a training, loaded by an attempt that continues it.

        checkpoints = Checkpoints(save=lambda folder: booster.save(folder / "model.ubj"), load=..., every=10)
        for step in checkpoints.steps(500):
            booster.update(...)

    `save` writes the state into an empty folder, `load` reads it back from one. After each `every` steps, and after the
    last one, the folder is uploaded to the run's artifacts, below ``checkpoints/``, with the states of Python's and
    NumPy's random numbers; the newest `keep` stay. A training asset continues its run after a retry, a re-execution
    or a pre-emption, and :meth:`steps` then starts at the last checkpoint. For PyTorch use :func:`torch_checkpoints`.

    A checkpoint counts once all of its files are stored. One that a kill cut short, or whose content has changed, is
    skipped for the one before it. One that cannot be stored leaves a warning, and the training continues.
    """

    def __init__(
        self, *, save: Callable[[Path], None], load: Callable[[Path], None], every: int = 1, keep: int = 2
    ) -> None:
        if every < 1 or keep < 1:
            raise TrainingRunError(f"Checkpoints(every={every}, keep={keep}): both must be at least 1.")
        self._save, self._load, self._every, self._keep = save, load, every, keep

    def steps(self, total: int) -> Iterator[int]:
        """The remaining steps of `total`, counted from 0; the loop's body is one step.

        Raises:
            TrainingRunError: no MLflow run is active, or a checkpoint does not fit what it is loaded into.
        """
        store, log = _artifacts(), dg.get_dagster_logger()
        first = self._restore(store)
        if first:
            log.info(f"Continues after step {first} of {total}, from the checkpoint of an earlier attempt.")
            mlflow.set_tag(RESUMED, str(first))
        for step in range(first, total):
            yield step
            if (step + 1) % self._every == 0 or step + 1 == total:
                # The next one comes soon, so the training does not wait the minutes for which MLflow retries.
                with environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES=_RETRIES):
                    self._take(store, step + 1, total)

    def _take(self, store: ArtifactRepository, step: int, total: int) -> None:
        started, saved, log = time.monotonic(), False, dg.get_dagster_logger()
        try:
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
                folder = Path(scratch, f"{step:08}")
                folder.mkdir()
                self._save(folder)
                saved = True
                size = _store(store, folder, step)
        except Exception as error:  # each kind of store has its own errors: S3's are not OSErrors
            if not saved and not isinstance(error, OSError):
                raise  # a bug in `save`, unless the disk is full
            log.warning(
                f"The checkpoint after step {step} of {total} is not stored, the training continues: {_text(error)}"
            )
            return
        log.info(f"Checkpoint after step {step}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s.")
        try:
            # Those of later steps were skipped when the training started: it does not continue from them.
            for name in [name for name in _names(store) if int(name) <= step][self._keep :]:
                store.delete_artifacts(f"{FOLDER}/{name}.json")
                store.delete_artifacts(f"{FOLDER}/{name}")
        except Exception as error:  # noqa: BLE001 - some stores cannot delete at all
            log.warning(f"Older checkpoints could not be deleted: {type(error).__name__}: {_text(error)}")

    def _restore(self, store: ArtifactRepository) -> int:
        """Load the newest complete checkpoint and return its number of steps: 0 when there is none."""
        for name in _names(store):
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
                try:
                    folder, manifest = _fetch(store, name, Path(scratch))
                except Exception as error:  # noqa: BLE001 - each kind of store has its own errors
                    # Fails when the whole store is away: a later attempt finds the checkpoint.
                    _names(store)
                    dg.get_dagster_logger().warning(f"Skips checkpoint {name}: {_text(error)}")
                    continue
                try:
                    self._load(folder)
                except (RuntimeError, ValueError, KeyError) as error:
                    raise TrainingRunError(
                        f"The checkpoint after step {manifest['step']} does not fit: {error}\nWas the model changed "
                        "within a Dagster run? A new run of the asset starts from the beginning."
                    ) from error
                _set_random_states(manifest["random"])
                return manifest["step"]
        return 0


def torch_checkpoints(*, every: int = 1, keep: int = 2, **parts: Any) -> Checkpoints:
    """Checkpoints of a PyTorch training: everything in `parts` that has a ``state_dict``, and random generators.

        checkpoints = torch_checkpoints(model=model, optimizer=optimizer, scheduler=scheduler, shuffling=generator)
        for epoch in checkpoints.steps(20):
            train_one_epoch(model, optimizer, loader)

    The states of torch's random numbers, on the CPU and on each GPU, are kept too: a training on a CPU that was stopped
    and continued ends with the same weights, bit for bit, as one that ran through. Files are read with
    ``weights_only``: nothing in them is executed.

    Raises:
        TrainingRunError: a part has no state that can be saved and loaded.
    """
    for name, part in parts.items():
        if not (hasattr(part, "load_state_dict") or hasattr(part, "set_state")):
            raise TrainingRunError(
                f"torch_checkpoints({name}={type(part).__name__}): it has neither load_state_dict, as modules, "
                "optimizers and schedulers have, nor set_state, as torch.Generator has."
            )

    checks: list[bool] = []

    def save(folder: Path) -> None:
        states = {
            name: (part.state_dict if hasattr(part, "state_dict") else part.get_state)() for name, part in parts.items()
        }
        chance = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        torch.save({"parts": states, "random": chance}, folder / "state.pt")
        if not checks:
            # Once, and without reading the weights: the attempt that continues must not be the first to fail.
            checks.append(True)
            try:
                torch.load(folder / "state.pt", map_location="meta", mmap=True, weights_only=True)
            except pickle.UnpicklingError as error:
                raise TrainingRunError(
                    f"torch_checkpoints({', '.join(parts)}): one of them has a state that cannot be loaded, because "
                    "files are read with weights_only: keep tensors, plain numbers and text in it, no NumPy values. "
                    f" {str(error).splitlines()[0]}"
                ) from error

    def load(folder: Path) -> None:
        # To the CPU first: the last attempt's GPU may be gone. load_state_dict moves the tensors.
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        for name, part in parts.items():
            (part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state)(state["parts"][name])
        torch.set_rng_state(state["random"]["cpu"])
        if len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])

    return Checkpoints(save=save, load=load, every=every, keep=keep)


def _artifacts() -> "ArtifactRepository":
    run = mlflow.active_run()
    if run is None:
        raise TrainingRunError(
            "Checkpoints need an active MLflow run, and there is none: use them in a training asset."
        )
    return artifact_store(run.info.artifact_uri)


def _store(store: ArtifactRepository, folder: Path, step: int) -> int:
    """Upload a checkpoint and return its size in bytes."""
    files = {file.relative_to(folder).as_posix(): digest(file) for file in _files(folder)}
    store.log_artifacts(str(folder), f"{FOLDER}/{folder.name}")
    # Last: it makes the checkpoint complete.
    manifest = folder.with_suffix(".json")
    manifest.write_text(json.dumps({"step": step, "files": files, "random": _random_states()}))
    store.log_artifact(str(manifest), FOLDER)
    return sum(file.stat().st_size for file in _files(folder))


def _names(store: ArtifactRepository) -> list[str]:
    """The complete checkpoints, newest first."""
    stored = [Path(file.path) for file in store.list_artifacts(FOLDER)]
    return sorted((file.stem for file in stored if file.suffix == ".json" and file.stem.isdigit()), reverse=True)


def _fetch(store: ArtifactRepository, name: str, scratch: Path) -> tuple[Path, dict[str, Any]]:
    manifest = json.loads(Path(store.download_artifacts(f"{FOLDER}/{name}.json", str(scratch))).read_text())
    folder = Path(store.download_artifacts(f"{FOLDER}/{name}", str(scratch)))
    if changed := [file for file, sha256 in manifest["files"].items() if digest(inside(folder, file)) != sha256]:
        raise ValueError(f"{', '.join(changed)} has changed since it was saved")
    return folder, manifest


def _text(error: Exception) -> str:
    return mask_credentials(str(error))[:500]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def _set_random_states(states: dict[str, Any]) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(states["numpy"])
