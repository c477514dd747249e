"""Options of all factories of monitoring: what makes no sense is refused when it is defined, and by its name."""

import inspect
import math
from datetime import timedelta
from typing import Any

import dagster as dg
import numpy as np
import pytest

from dagster_mlops import monitoring

SENSELESS = [True, math.nan, math.inf, -1, "", [], [None], {1: 1}, object(), timedelta.max]
FACTORIES: dict[str, dict[str, Any]] = {
    "alarm_asset": {"history": "h", "time": "t", "columns": ["a"], "rows": 100},
    "divergence_sensor": {"deployment": "d", "alarm": "a"},
    "divergence_checks": {"deployment": "d"},
    "incident_report_asset": {"deployment": "d", "alarm": "a"},
    "alert_sensor": {"checks": ["d:c"], "send": print},
    "response_sensor": {"check": "d:c", "asset_selection": ["x"]},
    "data_quality_check": {"asset": "a"},
    "drift_check": {"asset": "a", "reference": "r", "tool": "evidently"},
    "performance_check": {"asset": "a", "target": "t", "prediction": "p", "bounds": {"roc_auc": 0.6}},
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_senseless_option_is_refused_by_name_and_leaves_no_other_error(name):
    factory = getattr(monitoring, name)
    factory(**FACTORIES[name])
    for option, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        refusals = []
        for value in SENSELESS:
            try:
                factory(**{**FACTORIES[name], option: value})
            except dg.DagsterInvalidDefinitionError as error:
                refusals.append(str(error))
        assert len(refusals) >= 7 and any(option in text for text in refusals), option


def test_what_is_as_good_as_the_annotated_type_is_taken():
    rows, share, ends = np.int64(50), np.float32(0.5), [0, 1]
    options: dict[str, Any] = {"rows": rows, "ranges": {"a": ends}, "max_missing_share": share}
    monitoring.alarm_asset(
        history=dg.AssetSpec("h"), time="t", columns=("a", "b"), categories={"a"}, alarms=1, rows=options.pop("rows")
    )
    monitoring.data_quality_check(asset=["raw", "a"], **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": "temp"}, "columns='temp': it is a text, not a list"),
        ({"categories": ["b"]}, "categories names 'b', which columns does not"),
        ({"history": "raw//x"}, "'raw//x' names no asset"),
        ({"rows": None, "every": timedelta(days=1000)}, "from ten seconds to a year"),
    ],
)
def test_the_error_says_what_is_wrong(options, says):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=says):
        monitoring.alarm_asset(**{**FACTORIES["alarm_asset"], **options})
