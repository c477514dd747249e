"""The contract of a measuring tool."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.monitoring import Measures
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.normalise import Frame, normalise

_ROWS = 2000


def check_measure(measure: Measures, *, options: Mapping[str, Any] | None = None) -> None:
    """Check that a measuring tool's resource does what :func:`dagster_mlops.monitoring.drift_check` needs.

    It compares frames of numbers and categories, some with missing values: the same distribution twice, then columns
    with a shift that any measure must find.

        def test_the_contract_of_a_measure():
            check_measure(RiverResource())

    Raises:
        AssertionError: The tool misses a shift, invents one, leaves a column out, or answers the same frames
            differently.
    """
    reference, same = _frame(0), _frame(1)
    stable = compare(same, reference, measure, options=options, name="stable")
    assert {score.column for score in stable.columns} == set(reference.kinds), "a column has no score"
    assert not stable.drifted, f"drift is reported in the same distribution: {stable.columns}"
    assert stable.compared == [score.column for score in stable.columns], "a column was not compared"
    for score in stable.columns:
        assert score.method, f"{score.column}: no method is named"
        assert score.score is None or isinstance(score.score, float), f"{score.column}: the score is not a float"

    shifted = compare(_frame(1, shift=3.0), reference, measure, options=options, name="shifted")
    assert set(shifted.drifted) == {"number", "gappy", "category"}, f"drifted: {shifted.drifted}"
    assert shifted.columns[-1].column == "steady", "the stable column is not the last"

    repetition = compare(_frame(1, shift=3.0), reference, measure, options=options, name="shifted")
    assert repetition.columns == shifted.columns, "the same frames are answered differently"


def check_report(measure: Measures, folder: Path) -> None:
    """Check the reports of a measuring tool that makes them.

    Args:
        folder: Folder of the tool's reports.

    Raises:
        AssertionError: There is no report, its path is wrong, or writing it twice leaves two.
    """
    report = compare(_frame(1, shift=3.0), _frame(0), measure, name="shifted").report
    assert report, "there is no report"
    place = {"folder": "contract/drift", "name": "shifted"}
    path = report.path(**place)
    assert folder.resolve() in path.parents, f"{path} is not below {folder}"
    assert not path.exists(), "asking for the path writes the report"
    for _ in range(2):
        assert report.save(**place, record={"id": "shifted"}) == path
    assert path.stat().st_size and len(list(path.parent.glob(f"*{path.suffix}"))) == 1


def _frame(seed: int, *, shift: float = 0.0) -> Frame:
    random = np.random.default_rng(seed)
    common = random.choice(["a", "b", "c"], _ROWS)
    columns = {
        "number": random.normal(shift, 1, _ROWS),
        "gappy": np.where(random.random(_ROWS) < 0.2, np.nan, random.gamma(2, 1, _ROWS) + shift),
        "category": np.where(random.random(_ROWS) < shift / 4, "d", common),
        "steady": random.integers(0, 24, _ROWS),
    }
    return normalise(pd.DataFrame(columns))
