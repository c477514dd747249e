"""Settings that libraries read when they are loaded, and so before a service can make them."""

import os


def use_one_thread() -> None:
    """Have OpenMP use one thread, unless the environment says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
