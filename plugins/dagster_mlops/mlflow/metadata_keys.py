"""Metadata keys that several modules of this folder write or read, shown on the asset's page."""

METRIC = "mlflow/metric"
RUN_URL = "mlflow/run_url"
VERSION_URL = "mlflow/version_url"
REGISTERED_AS = "mlflow/registered_model_name"
