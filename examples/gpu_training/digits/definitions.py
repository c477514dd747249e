"""Digits in, a traced network out: on a CPU unless a profile or the config says otherwise."""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.k8s import GpuProfile, mlops_executor
from dagster_mlops.mlflow import MlflowResource, close_orphan_runs_sensor, metric_checks, training_asset
from dagster_mlops.mlflow.training import torch_checkpoints

STATE = Path(os.environ.get("DIGITS_STATE", ".state")).absolute()

# What the step gets from a cluster; in a process on one's own machine profiles change nothing.
PROFILES = {
    "cpu": GpuProfile(name="cpu", gpus=0, cpu=2, memory="4Gi"),
    "gpu": GpuProfile(name="gpu", gpus=1, memory="16Gi", shm="4Gi", pool="gpu"),
}
profile = PROFILES[os.environ.get("DIGITS_PROFILE", "cpu")]


class Training(dg.Config):
    """What one training does."""

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 0.002
    channels: int = 16
    device: str = "auto"  # cpu, cuda, or a GPU where there is one


@dg.asset(group_name="digits", kinds={"python"})
def digits() -> dict[str, Any]:
    """1,797 handwritten digits of 8 × 8 pixels, which scikit-learn ships; the last 360 are kept for the test."""
    from sklearn.datasets import load_digits

    pixels, answers = load_digits(return_X_y=True)
    pixels = pixels.astype("float32")
    return {"train": (pixels[:-360], answers[:-360]), "test": (pixels[-360:], answers[-360:])}


@training_asset(
    registered_model_name="digits",
    experiment="digits",
    seed=7,
    group_name="digits",
    op_tags=profile.op_tags(),
    pool=profile.pool,
    # A node that is taken away costs the epochs since the last checkpoint, not the training.
    retry_policy=dg.RetryPolicy(max_retries=3, delay=30),
)
def digits_model(config: Training, digits: dict[str, Any]) -> None:
    """A convolutional network with a checkpoint after each epoch."""
    import mlflow
    import torch
    from mlflow.models import infer_signature

    from digits.network import Digits, accuracy, batches, device_of, train_one_epoch

    device = device_of(config.device)
    model = Digits(config.channels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    loader = batches(*digits["train"], size=config.batch_size)
    for epoch in torch_checkpoints(model=model, optimizer=optimizer).steps(config.epochs):
        loss = train_one_epoch(model, optimizer, loader)
        mlflow.log_metrics({"loss": loss, "accuracy": accuracy(model, *digits["test"])}, step=epoch)

    example = digits["test"][0][:3]
    model = model.cpu().eval()
    mlflow.pytorch.log_model(  # pyright: ignore[reportPrivateImportUsage] (MLflow imports its flavors lazily)
        model,
        name="model",
        signature=infer_signature(example, model(torch.from_numpy(example)).detach().numpy()),
        input_example=example,
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
    )


defs = dg.Definitions(
    assets=[digits, digits_model],
    asset_checks=metric_checks(asset=digits_model, bounds={"accuracy": (0.9, None)}),
    sensors=[close_orphan_runs_sensor()],
    resources={"mlflow": MlflowResource(tracking_uri=f"sqlite:///{STATE}/mlflow.db")},
    executor=mlops_executor(),
)
