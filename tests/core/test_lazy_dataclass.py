"""Dataclasses that are compiled when they are first used are dataclasses like any other."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.provenance import Dataset, Record, Ref


def point():
    @lazy_dataclass(frozen=True, order=True)
    class Point:
        """A point."""

        x: int
        y: int = 0
        tags: dict = dataclasses.field(default_factory=dict, compare=False)

    return Point


@pytest.mark.parametrize(
    "use",
    [
        lambda cls: cls(1),
        dataclasses.fields,
        dataclasses.is_dataclass,
        inspect.signature,
        lambda cls: dataclasses.dataclass(frozen=True)(type("Sub", (cls,), {})),
        lambda cls: type("Plain", (cls,), {})(1),
    ],
)
def test_whatever_is_used_first_it_is_the_dataclass(use):
    lazy = point()
    assert "__init__" not in vars(lazy)
    assert use(lazy)
    assert "__init__" in vars(lazy)
    assert [field.name for field in dataclasses.fields(lazy)] == ["x", "y", "tags"]
    assert list(inspect.signature(lazy).parameters) == ["x", "y", "tags"]
    assert lazy(1) == lazy(1, 0) < lazy(1, 1) and hash(lazy(1)) == hash(lazy(1, 0))
    assert repr(lazy(1)).endswith("Point(x=1, y=0, tags={})")
    assert copy.deepcopy(lazy(1)) == dataclasses.replace(lazy(2), x=1) == lazy(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        lazy(1).x = 2  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        lazy(1, z=2)  # pyright: ignore[reportCallIssue]


def test_a_frozen_dataclass_of_a_user_may_extend_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Table(Record, role="table_of_a_test", id="{name}"):
        """A table."""

        name: str

    assert Table(tool="acme", name="rows").ref == Ref("acme", "table_of_a_test", "rows")


def test_a_record_from_another_process_compares_before_this_one_has_made_any():
    stored = pickle.dumps([Dataset(path="a", md5="b", repo="c")] * 2 + [Dataset(path="a", md5="c", repo="c")])
    code = "import pickle, sys; a, b, c = pickle.loads(sys.stdin.buffer.read()); print(a == b, a == c, hash(a), a)"
    done = subprocess.run([sys.executable, "-c", code], input=stored, capture_output=True, check=True)
    assert done.stdout.startswith(b"True False")
    assert b"Dataset(tool='dvc', path='a', md5='b', repo='c')" in done.stdout


def test_threads_that_make_the_first_instances_at_once_all_get_theirs():
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            lazy = point()
            assert list(pool.map(lazy, range(8))) == [lazy(x) for x in range(8)]
