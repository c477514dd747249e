"""Checkpoints in the artifact store of a run: what a training that was stopped goes on from."""

import hashlib
import json
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.provenance import NAMESPACE, mask_credentials

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

FOLDER = "checkpoints"
RESUMED = f"{NAMESPACE}.resumed_step"  # tag of a run: the steps that were done when its last attempt began
_REPEATS = "3"  # of a request that stores a checkpoint: some 12 seconds


class Checkpoints:
    """Checkpoints of MLflow's active run: saved while a training goes on, found again by the attempt that continues it.

        checkpoints = Checkpoints(save=lambda folder: booster.save(folder / "model.ubj"), load=..., every=10)
        for step in checkpoints.steps(500):
            booster.update(...)

    `save` writes the state into an empty folder, `load` reads it back from one. `every` so many steps, and after the
    last one, the folder goes to the artifact store of the run, below ``checkpoints/``, with the states of Python's and
    NumPy's random numbers; the newest `keep` stay. A training asset continues its run after a retry, a re-execution
    and a pre-emption, so that :meth:`steps` begins where the last checkpoint was taken. For PyTorch there is
    :func:`torch_checkpoints`.

    A checkpoint counts once all of its files are stored: one that a kill cut short, or whose content is not what was
    saved, is passed over for the one before it. One that cannot be stored is warned of and does not stop the training.
    """

    def __init__(
        self, *, save: Callable[[Path], None], load: Callable[[Path], None], every: int = 1, keep: int = 2
    ) -> None:
        if every < 1 or keep < 1:
            raise TrainingRunError(f"Checkpoints(every={every}, keep={keep}): both are whole numbers from 1.")
        self._save, self._load, self._every, self._keep = save, load, every, keep

    def steps(self, total: int) -> Iterator[int]:
        """The steps that are left of `total`, counted from 0; what is in the loop's body is one step.

        Raises:
            TrainingRunError: no MLflow run is active, or a checkpoint does not fit what it is loaded into.
        """
        store, log = _artifacts(), dg.get_dagster_logger()
        done = self._restore(store)
        if done:
            log.info(f"Goes on after step {done} of {total}, from the checkpoint of an earlier attempt.")
            extra("mlflow").set_tag(RESUMED, str(done))
        for step in range(done, total):
            yield step
            if (step + 1) % self._every == 0 or step + 1 == total:
                # The next one comes soon: the training does not wait the minutes for which MLflow asks again.
                with environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES=_REPEATS):
                    self._take(store, step + 1, total)

    def _take(self, store: "ArtifactRepository", step: int, total: int) -> None:
        started, saved, log = time.monotonic(), False, dg.get_dagster_logger()
        try:
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
                folder = Path(scratch, f"{step:08}")
                folder.mkdir()
                self._save(folder)
                saved = True
                size = _store(store, folder, step)
        except Exception as error:  # each kind of store has errors of its own: those of S3 are no OSError
            if not saved and not isinstance(error, OSError):
                raise  # a mistake in `save`, where it is not the disk that is full
            log.warning(
                f"The checkpoint after step {step} of {total} could not be stored, the training goes on: {_told(error)}"
            )
            return
        log.info(f"Checkpoint after step {step}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s.")
        try:
            # Those of later steps were passed over when the training began: they are not what it goes on from.
            for name in [name for name in _names(store) if int(name) <= step][self._keep :]:
                store.delete_artifacts(f"{FOLDER}/{name}.json")
                store.delete_artifacts(f"{FOLDER}/{name}")
        except Exception as error:  # noqa: BLE001 - some stores cannot delete at all
            log.warning(f"Older checkpoints could not be deleted: {type(error).__name__}: {_told(error)}")

    def _restore(self, store: "ArtifactRepository") -> int:
        """Load the newest checkpoint that is whole. Gives back how many steps it holds: 0 where there is none."""
        for name in _names(store):
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
                try:
                    folder, manifest = _fetch(store, name, Path(scratch))
                except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
                    # Fails where it is the whole store that is away: a later attempt finds the checkpoint.
                    _names(store)
                    dg.get_dagster_logger().warning(f"Passes over checkpoint {name}: {_told(error)}")
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
    """Checkpoints of a PyTorch training: of everything in `parts` that has a ``state_dict``, and of random generators.

        checkpoints = torch_checkpoints(model=model, optimizer=optimizer, scheduler=scheduler, shuffling=generator)
        for epoch in checkpoints.steps(20):
            train_one_epoch(model, optimizer, loader)

    The states of torch's own random numbers, on the CPU and on each GPU, are kept too: a training on a CPU that was
    stopped and continued ends with the same weights, bit for bit, as one that was not. Files are read with
    ``weights_only``: nothing in them is executed.

    Raises:
        TrainingRunError: a part has no state that could be kept, or read again.
    """
    for name, part in parts.items():
        if not (hasattr(part, "load_state_dict") or hasattr(part, "set_state")):
            raise TrainingRunError(
                f"torch_checkpoints({name}={type(part).__name__}): it has neither load_state_dict, as modules, "
                "optimizers and schedulers have, nor set_state, as torch.Generator has."
            )

    tried: list[bool] = []

    def save(folder: Path) -> None:
        torch = extra("torch")
        states = {
            name: (part.state_dict if hasattr(part, "state_dict") else part.get_state)() for name, part in parts.items()
        }
        chance = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        torch.save({"parts": states, "random": chance}, folder / "state.pt")
        if not tried:
            # Once, and without reading the weights: an attempt that goes on would be too late to learn it.
            tried.append(True)
            try:
                torch.load(folder / "state.pt", map_location="meta", mmap=True, weights_only=True)
            except pickle.UnpicklingError as error:
                raise TrainingRunError(
                    f"torch_checkpoints({', '.join(parts)}): one of them has a state that could not be read again, "
                    "because files are read with weights_only: keep tensors, plain numbers and text in it, and no "
                    f"NumPy values. {str(error).splitlines()[0]}"
                ) from error

    def load(folder: Path) -> None:
        torch = extra("torch")
        # On the CPU first: the GPU of the last attempt need not be there. load_state_dict moves what it takes.
        held = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        for name, part in parts.items():
            (part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state)(held["parts"][name])
        torch.set_rng_state(held["random"]["cpu"])
        if len(held["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(held["random"]["cuda"])

    return Checkpoints(save=save, load=load, every=every, keep=keep)


def _artifacts() -> "ArtifactRepository":
    run = extra("mlflow").active_run()
    if run is None:
        raise TrainingRunError("Checkpoints belong to an MLflow run, and none is active: use them in a training asset.")
    registry = extra("mlflow.store.artifact.artifact_repository_registry")
    return registry.get_artifact_repository(run.info.artifact_uri)


def _store(store: "ArtifactRepository", folder: Path, step: int) -> int:
    """Upload a checkpoint. Gives back its size in bytes."""
    files = {file.relative_to(folder).as_posix(): _sha256(file) for file in _files(folder)}
    store.log_artifacts(str(folder), f"{FOLDER}/{folder.name}")
    # Last: with it the checkpoint is there.
    manifest = folder.with_suffix(".json")
    manifest.write_text(json.dumps({"step": step, "files": files, "random": _random_states()}))
    store.log_artifact(str(manifest), FOLDER)
    return sum(file.stat().st_size for file in _files(folder))


def _names(store: "ArtifactRepository") -> list[str]:
    """The checkpoints that were stored to the end, newest first."""
    stored = [Path(file.path) for file in store.list_artifacts(FOLDER)]
    return sorted((file.stem for file in stored if file.suffix == ".json" and file.stem.isdigit()), reverse=True)


def _fetch(store: "ArtifactRepository", name: str, scratch: Path) -> tuple[Path, dict[str, Any]]:
    manifest = json.loads(Path(store.download_artifacts(f"{FOLDER}/{name}.json", str(scratch))).read_text())
    folder = Path(store.download_artifacts(f"{FOLDER}/{name}", str(scratch)))
    if changed := [file for file, digest in manifest["files"].items() if _sha256(folder / file) != digest]:
        raise ValueError(f"{', '.join(changed)} is not what was saved")
    return folder, manifest


def _told(error: Exception) -> str:
    return mask_credentials(str(error))[:500]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _random_states() -> dict[str, Any]:
    name, keys, *rest = extra("numpy", extra="mlflow").random.get_state()
    return {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}


def _set_random_states(states: dict[str, Any]) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    extra("numpy", extra="mlflow").random.set_state(states["numpy"])
