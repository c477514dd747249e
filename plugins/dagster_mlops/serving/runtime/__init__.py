"""The part of serving that runs beside the model; a package holds a copy, so that it needs neither Dagster nor this."""

from .log_rules import LogRules
from .predictions import PredictionLog, RowTooLarge
from .requests import checked_id, features_only, ids_of_rows
from .scoring import features_of, outputs_of, records_of, signature_inputs
from .trace_context import trace_id_of

__all__ = [
    "LogRules",
    "PredictionLog",
    "RowTooLarge",
    "checked_id",
    "features_of",
    "features_only",
    "ids_of_rows",
    "outputs_of",
    "records_of",
    "signature_inputs",
    "trace_id_of",
]
