"""The whole life of a model as Dagster assets, with one unbroken record from a raw file to a single prediction.

Each tool is a folder and an extra of its own: `dagster_mlops.dvc`, `.feast`, `.mlflow`, `.bentoml`, `.evidently`,
`.k8s`. Import the one you use; nothing here imports a tool before an asset runs.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
