"""Training runs, model versions and aliases in MLflow."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation import EvaluationChecks as EvaluationChecks
    from dagster_mlops.evaluation import EvaluationComponent as EvaluationComponent
    from dagster_mlops.evaluation import MetricBounds as MetricBounds
    from dagster_mlops.evaluation import calibration_error as calibration_error
    from dagster_mlops.evaluation import evaluation_asset as evaluation_asset
    from dagster_mlops.evaluation import evaluation_checks as evaluation_checks
    from dagster_mlops.evaluation import reference_asset as reference_asset
    from dagster_mlops.mlflow.assets import training_asset as training_asset
    from dagster_mlops.mlflow.checks import metric_checks as metric_checks
    from dagster_mlops.mlflow.component import MetricChecksComponent as MetricChecksComponent
    from dagster_mlops.mlflow.io_manager import MlflowModelIOManager as MlflowModelIOManager
    from dagster_mlops.mlflow.io_manager import mlflow_model_io_manager as mlflow_model_io_manager
    from dagster_mlops.mlflow.reference import load_reference as load_reference
    from dagster_mlops.mlflow.resource import MlflowResource as MlflowResource
    from dagster_mlops.mlflow.sensors import close_orphan_runs_sensor as close_orphan_runs_sensor
    from dagster_mlops.mlflow.sweep.asset import sweep_asset as sweep_asset
    from dagster_mlops.mlflow.sweep.partitions import PartitionedSweep as PartitionedSweep
    from dagster_mlops.mlflow.sweep.partitions import sweep_trials as sweep_trials
    from dagster_mlops.promotion import Approval as Approval
    from dagster_mlops.promotion import AtLeast as AtLeast
    from dagster_mlops.promotion import AtMost as AtMost
    from dagster_mlops.promotion import Better as Better
    from dagster_mlops.promotion import CompatibleSignature as CompatibleSignature
    from dagster_mlops.promotion import CompleteProvenance as CompleteProvenance
    from dagster_mlops.promotion import FreshData as FreshData
    from dagster_mlops.promotion import GreenChecks as GreenChecks
    from dagster_mlops.promotion import Improvement as Improvement
    from dagster_mlops.promotion import Lifecycle as Lifecycle
    from dagster_mlops.promotion import ModelCopyComponent as ModelCopyComponent
    from dagster_mlops.promotion import ModelSize as ModelSize
    from dagster_mlops.promotion import NotWorseOnSlices as NotWorseOnSlices
    from dagster_mlops.promotion import PredictionTime as PredictionTime
    from dagster_mlops.promotion import PromotionComponent as PromotionComponent
    from dagster_mlops.promotion import SourcePromotion as SourcePromotion
    from dagster_mlops.promotion import alias_sensor as alias_sensor
    from dagster_mlops.promotion import approval_asset as approval_asset
    from dagster_mlops.promotion import approval_sensor as approval_sensor
    from dagster_mlops.promotion import model_copy_asset as model_copy_asset
    from dagster_mlops.promotion import promotion_asset as promotion_asset

__getattr__, __dir__ = lazy_door(__name__)
