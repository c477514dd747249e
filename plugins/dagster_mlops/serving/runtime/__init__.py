"""The part of serving that runs beside the model; a package holds a copy, so that it needs neither Dagster nor this."""

from .predictions import PredictionLog
from .scoring import features_of, outputs_of, records_of, signature_inputs

__all__ = ["PredictionLog", "features_of", "outputs_of", "records_of", "signature_inputs"]
