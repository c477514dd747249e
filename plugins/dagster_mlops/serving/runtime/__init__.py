"""The part of serving that runs beside the model; a package holds a copy, so that it needs neither Dagster nor this."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.serving.runtime.attempts import Attempts as Attempts
    from dagster_mlops.serving.runtime.log.predictions import PredictionLog as PredictionLog
    from dagster_mlops.serving.runtime.log.predictions import RowTooLarge as RowTooLarge
    from dagster_mlops.serving.runtime.log.rules import LogRules as LogRules
    from dagster_mlops.serving.runtime.lookup import Lookup as Lookup
    from dagster_mlops.serving.runtime.outputs import OutputError as OutputError
    from dagster_mlops.serving.runtime.outputs import records_of as records_of
    from dagster_mlops.serving.runtime.requests import checked_id as checked_id
    from dagster_mlops.serving.runtime.requests import features_only as features_only
    from dagster_mlops.serving.runtime.requests import ids_of_rows as ids_of_rows
    from dagster_mlops.serving.runtime.schema import signature_inputs as signature_inputs
    from dagster_mlops.serving.runtime.scoring import features_of as features_of
    from dagster_mlops.serving.runtime.scoring import outputs_of as outputs_of
    from dagster_mlops.serving.runtime.trace_context import trace_id_of as trace_id_of

__getattr__, __dir__ = lazy_door(__name__)
