"""BentoML keeps the contract of a tool; its predictions need nothing that is installed."""

import dataclasses

from dagster_mlops.bentoml import PredictionLog
from dagster_mlops.bentoml.tool import BentomlTool
from dagster_mlops.provenance import Ref
from dagster_mlops.testing import check_tool


def test_bentoml_answers_for_predictions_as_a_tool_has_to(tmp_path):
    log = PredictionLog(tmp_path, model_name="delay", model_version="3")
    log.write(inputs=[{"hour": 7}], outputs=[0.25], request_ids=["a"])
    present = Ref("bentoml", "prediction", "a", at=str(tmp_path))
    check_tool(BentomlTool(), name="bentoml", present=present, absent=dataclasses.replace(present, id="b"))
