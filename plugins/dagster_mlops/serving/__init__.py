"""Rollouts of packaged models behind Envoy: state, processes, traffic and golden sets, whatever tool packages them."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.serving.asset import deployment_asset as deployment_asset
    from dagster_mlops.serving.batch.asset import batch_predictions_asset as batch_predictions_asset
    from dagster_mlops.serving.checks import deployment_health_check as deployment_health_check
    from dagster_mlops.serving.component import BatchPredictionsComponent as BatchPredictionsComponent
    from dagster_mlops.serving.component import FeedbackComponent as FeedbackComponent
    from dagster_mlops.serving.feedback.asset import feedback_asset as feedback_asset
    from dagster_mlops.serving.feedback.labels import join_labels as join_labels
    from dagster_mlops.serving.local.access import Access as Access
    from dagster_mlops.serving.local.former import rollback as rollback
    from dagster_mlops.serving.local.overview import status as status
    from dagster_mlops.serving.local.overview import stop as stop
    from dagster_mlops.serving.local.reconcile import repair as repair
    from dagster_mlops.serving.packager import Packages as Packages
    from dagster_mlops.serving.packager import Server as Server
    from dagster_mlops.serving.packager import ServerSettings as ServerSettings
    from dagster_mlops.serving.packager import TunesServers as TunesServers
    from dagster_mlops.serving.rollout_verdict.observations import Answer as Answer
    from dagster_mlops.serving.rollout_verdict.observations import AnswerLog as AnswerLog
    from dagster_mlops.serving.rollout_verdict.observations import Arm as Arm
    from dagster_mlops.serving.rollout_verdict.observations import Batch as Batch
    from dagster_mlops.serving.rollout_verdict.observations import Counters as Counters
    from dagster_mlops.serving.rollout_verdict.options import Canary as Canary
    from dagster_mlops.serving.rollout_verdict.options import Shadow as Shadow
    from dagster_mlops.serving.rollout_verdict.result import rollout_check_result as rollout_check_result
    from dagster_mlops.serving.rollout_verdict.rollout import Part as Part
    from dagster_mlops.serving.rollout_verdict.rollout import Rollout as Rollout
    from dagster_mlops.serving.rollout_verdict.rollout import Verdict as Verdict
    from dagster_mlops.serving.rollout_verdict.traffic import Traffic as Traffic
    from dagster_mlops.serving.rollout_verdict.traffic import run_rollout as run_rollout
    from dagster_mlops.serving.runtime import LogRules as LogRules
    from dagster_mlops.serving.runtime import PredictionLog as PredictionLog
    from dagster_mlops.serving.sensors import deployment_health_sensor as deployment_health_sensor

__getattr__, __dir__ = lazy_door(__name__)
