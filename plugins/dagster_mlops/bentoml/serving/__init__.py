"""What runs inside a bento: copied into each one, so that serving needs neither Dagster nor this library installed."""

from .predictions import PredictionLog
from .scoring import features_of, outputs_of, records_of
from .service import mlflow_service

__all__ = ["PredictionLog", "features_of", "mlflow_service", "outputs_of", "records_of"]
