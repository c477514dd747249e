"""Fails when Evidently no longer needs our work-around."""

import numpy as np
import pandas as pd

from dagster_mlops.evidently import EvidentlyResource, upstream
from dagster_mlops.evidently.resource import quiet
from dagster_mlops.monitoring.normalise import normalise

with quiet():
    from evidently.metrics import column_statistics
    from evidently.presets import DataSummaryPreset


def test_a_histogram_is_drawn_for_each_statistic_of_a_column(monkeypatch, tmp_path):
    drawn, draw, one_each = [], column_statistics.distribution, upstream._one_each

    def counted(title, current, reference):
        drawn.append(current.data.name)
        return draw(title, current, reference)

    temp, wind = np.random.default_rng(0).normal(size=(2, 500))
    frame = pd.DataFrame({"temp": temp, "wind": wind, "carrier": list("ABCDE") * 100})
    normal, tool = normalise(frame), EvidentlyResource(reports=str(tmp_path))

    def shown(wrapper):
        monkeypatch.setattr(column_statistics, "distribution", counted)
        monkeypatch.setattr(upstream, "_one_each", wrapper)
        drawn.clear()
        report = tool.summary(normal, list(normal.kinds), name="one")
        assert report
        return len(drawn), without_ids([widget.dict() for widget in report.snapshot._widgets])

    once, ours = shown(one_each)
    each_time, theirs = shown(lambda function: function)
    assert each_time > 10, f"Evidently does it by itself: drop {upstream.one_histogram_per_column}"
    assert once == 3
    assert ours and ours == theirs


def test_a_category_ends_the_script_element_of_a_report(tmp_path):
    tool, category = EvidentlyResource(reports=str(tmp_path)), "</script><b>"
    data = tool.dataset(pd.DataFrame({"carrier": [category, "A"] * 30}))
    with quiet():
        snapshot = tool.run([DataSummaryPreset()], data)
        theirs = snapshot.get_html_str(as_iframe=False)
    assert category in theirs, f"Evidently escapes it by itself: drop {upstream.safe_html}"
    assert category not in upstream.safe_html(snapshot)


def without_ids(found):
    if isinstance(found, dict):
        return {key: without_ids(value) for key, value in found.items() if key != "id"}
    found = getattr(found, "tolist", lambda: found)()  # of an array
    return [without_ids(item) for item in found] if isinstance(found, list) else found
