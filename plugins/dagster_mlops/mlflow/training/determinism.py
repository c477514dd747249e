"""Repeatable results: seeds, and PyTorch's switches, also when it is imported later."""

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.environment import environment


@contextmanager
def repeatable(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed `random`, NumPy and PyTorch; with `deterministic`, PyTorch also refuses other operations.

    PyTorch is set up when the block imports it. Its switches are restored at the end, seeds are not.
    """
    undo: list[Callable[[], None]] = []

    def prepare(torch: Any) -> None:
        torch.manual_seed(seed)
        if deterministic:
            undo.append(_be_deterministic(torch))

    random.seed(seed)
    np.random.seed(seed % 2**32)
    # cuBLAS reads this variable when it starts, and is not deterministic without it.
    with environment(**({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {})):
        at_import = _AtImport("torch", prepare)
        if torch := sys.modules.get("torch"):
            prepare(torch)
        else:
            sys.meta_path.insert(0, at_import)
        try:
            yield
        finally:
            at_import.remove()
            for restore in undo:
                restore()


def _be_deterministic(torch: Any) -> Callable[[], None]:
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    def switch(strict: bool, deterministic: bool, benchmark: bool) -> None:
        torch.use_deterministic_algorithms(strict)
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark

    switch(True, True, False)
    return lambda: switch(*before)


class _AtImport(MetaPathFinder):
    """Calls `action` with a module right after its import, once."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        self.remove()
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec.loader if spec else None
        if loader is not None and hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.action(module)

            loader.exec_module = exec_module
        return spec

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
