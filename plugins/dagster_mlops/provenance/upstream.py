"""The private name of Python's own library, with what is missing in public."""

import os
from collections.abc import Mapping
from typing import Any


def all_variables() -> Mapping[Any, Any]:
    """All variables of the environment as the system spells them, to be compared with what they were before.

    Every record comes by here. Comparing takes 1 µs; each public view decodes all of them, which takes some 25.
    https://github.com/python/cpython/blob/3.13/Lib/os.py
    """
    return os.environ._data  # pyright: ignore[reportAttributeAccessIssue]
