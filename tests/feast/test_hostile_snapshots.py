"""The snapshot of a training set is data in a registry that others write: its names lead nowhere else."""

from types import SimpleNamespace
from typing import Any

import pytest

from dagster_mlops.core.files import digest
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.rebuild import replay
from dagster_mlops.feast.rebuild.snapshot import SourceFile, SourceVersion


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("weather", {"name": "../../../.git/hooks/post-checkout"}),
        ("weather", {"name": "/tmp/elsewhere"}),
        ("weather", {"name": "a", "within": "../secret"}),
        ("..", {"name": "a"}),
    ],
)
def test_a_name_in_a_snapshot_that_leads_out_is_refused(tmp_path, source, file):
    (data := tmp_path / "data" / "part").mkdir(parents=True)
    (secret := tmp_path / "data" / "secret").write_text("s")
    (data / "a").write_text("s")
    (scratch := tmp_path / "scratch").mkdir()
    datasets: Any = SimpleNamespace(read_path=lambda path, md5: data)
    facts = {"md5": digest(secret, "md5"), "dataset": "part@1", "repo": "/r", "within": "a", **file}
    inputs: Any = SimpleNamespace(definitions={"views": [{"spec": {"batch_source": {"name": source}}}]})
    version = SourceVersion(source, "/x", files=(SourceFile(**facts),))
    record: Any = SimpleNamespace(ref="r")
    with pytest.raises(FeatureError, match="not a name below its folder"):
        replay._file_options(None, inputs, version, scratch, record, lambda repo: datasets)  # pyright: ignore[reportArgumentType]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
