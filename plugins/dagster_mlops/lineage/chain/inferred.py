"""What one link of the chain says of the next, for when neither the tool nor Dagster can."""

from dagster_mlops.provenance import Bento, Dataset, Deployment, ModelVersion, Prediction, Record, Ref, TrainingRun


def carried(child: Record | None, ref: Ref) -> Record | None:
    """A partial record of `ref`, made from the facts on the record that names it as upstream, or None.

    carried(bento, Ref("mlflow", "model_version", "delay/3"))  # name, version, run id and dataset hashes
    """
    if isinstance(child, Prediction) and ref.kind == Deployment.kind:
        name, _, deployment_id = ref.id.rpartition("/")
        return Deployment(
            name=name,
            id=deployment_id,
            bento=child.bento,
            model_name=child.model_name,
            model_version=child.model_version,
            url="",
            state_dir=ref.at,
            prediction_log=child.prediction_log,
            upstream=(Ref("bentoml", "bento", child.bento),) if child.bento else (),
        )
    if isinstance(child, Deployment) and ref.kind == Bento.kind:
        return Bento(
            tag=ref.id,
            home=ref.at,
            model_name=child.model_name,
            model_version=child.model_version,
            upstream=(Ref("mlflow", "model_version", f"{child.model_name}/{child.model_version}"),),
        )
    if isinstance(child, Bento) and ref.kind == ModelVersion.kind:
        return ModelVersion(
            name=child.model_name,
            version=child.model_version,
            run_id=child.run_id,
            tracking_uri=ref.at,
            datasets=child.datasets,
            upstream=(Ref("mlflow", "training_run", child.run_id, at=ref.at),) if child.run_id else (),
        )
    if isinstance(child, ModelVersion) and ref.kind == TrainingRun.kind:
        return TrainingRun(
            run_id=child.run_id,
            tracking_uri=ref.at,
            metrics=child.metrics,
            upstream=tuple(Ref("dvc", "dataset", f"{path}@{md5}") for path, md5 in child.datasets.items()),
        )
    if isinstance(child, ModelVersion | TrainingRun) and ref.kind == Dataset.kind:
        path, _, md5 = ref.id.rpartition("@")
        return Dataset(path=path, md5=md5, repo=ref.at)
    return None
