"""The places of the projects whose trainings are run again."""

from collections.abc import Iterator

import pytest

from dagster_mlops.core.places import ALLOW


@pytest.fixture(scope="module", autouse=True)
def _places_of_projects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Allow them: those who ask here have no event log that names them."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.module, "Project"):
            patch.setenv(ALLOW, str(tmp_path_factory.getbasetemp()))
        yield
