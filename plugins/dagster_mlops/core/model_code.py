"""The modules that a model brings along (MLflow's `code_paths`), apart from those of other models."""

import builtins
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from dagster_mlops.core.inside import inside

_LOCK = threading.RLock()


class ModelCode(MetaPathFinder):
    """The modules of one model. They are importable, and their names mean these modules, only while it is active.

        code = ModelCode.of(folder, flavors)
        with code.active():
            model = mlflow.pyfunc.load_model(str(folder))
        code.calling(model.predict)(rows)

    MLflow puts a model's folder of code first on ``sys.path`` and leaves it there. But Python keeps one module per
    name: of two models that bring a ``rules.py``, the second runs the first one's code, and one that the process has
    imported itself is used instead of the model's (https://github.com/mlflow/mlflow/issues/12377). Here each model has
    modules of its own. An ``import`` that runs inside them later, such as one in a function, finds the same ones.
    If the process can import exactly the same files, its own modules are shared, so that classes are identical.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [str(folder) for folder in folders]
        self._names = {name for folder in folders for name in _top_level(folder)}
        self._active = 0
        same = all(_same_files(folder, name) for folder in folders for name in _top_level(folder))
        self._modules: dict[str, ModuleType] = self._in_process() if same else {}

    @classmethod
    def of(cls, folder: Path, flavors: Mapping[str, Mapping[str, Any]] | None = None) -> "ModelCode":
        """The code in the folder of a stored model, as its flavours name it; by default those in its MLmodel file."""
        if flavors is None:
            return cls.of(folder, (yaml.safe_load((folder / "MLmodel").read_text()) or {}).get("flavors") or {})
        names = {str(flavor["code"]) for flavor in flavors.values() if flavor.get("code")}
        return cls([code for name in sorted(names) if (code := inside(folder, name)).is_dir()])

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the names of these modules mean these modules, for all threads, until the block ends."""
        if not self._names:
            yield
            return
        with _LOCK:
            if self._active:
                yield
                return
            outside, path = self._take_out(), sys.path
            sys.modules.update(self._modules)
            sys.path = [*self._folders, *path]
            sys.meta_path.insert(0, self)
            self._active += 1
            try:
                yield
            finally:
                self._active -= 1
                sys.meta_path.remove(self)
                # MLflow has put them there, too, into a new list.
                path[:] = [place for place in sys.path if place not in self._folders]
                sys.path = path
                self._modules = self._take_out()
                sys.modules.update(outside)

    def calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which is active while it runs: it may import by name, or read pickles."""
        if not self._names:
            return function

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.active():
                return function(*arguments, **options)

        return call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of these modules, in which ``import`` keeps to these modules at any time."""
        if fullname.partition(".")[0] not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, self._folders if path is None else path)
        loader: Any = spec.loader if spec else None
        if loader is not None and hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                # The functions of a module take `__import__` from here, whenever they are called.
                vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
                execute(module)

            loader.exec_module = exec_module
        return spec

    def _import(self, name: str, *arguments: Any, **options: Any) -> ModuleType:
        if self._active:  # perhaps by another thread, which waits for this one
            return builtins.__import__(name, *arguments, **options)
        with self.active():
            return builtins.__import__(name, *arguments, **options)

    def _in_process(self) -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in self._names}

    def _take_out(self) -> dict[str, ModuleType]:
        modules = self._in_process()
        for name in modules:
            del sys.modules[name]
        return modules


def _top_level(folder: Path) -> set[str]:
    """Names under which modules below `folder` are imported."""
    return {
        entry.name.partition(".")[0]
        for entry in folder.iterdir()
        if entry.name != "__pycache__" and (entry.is_dir() or entry.suffix in (".py", ".so", ".pyd"))
    }


def _same_files(folder: Path, name: str) -> bool:
    """True if this process imports the same files by `name`, or has no such module."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) or (None if module else PathFinder.find_spec(name))
    if spec is None:
        return module is None
    if spec.submodule_search_locations is None:
        files = [folder / f"{name}.py"]
        places = [Path(spec.origin or "").parent]
    else:
        files, places = list((folder / name).rglob("*.py")), [Path(p).parent for p in spec.submodule_search_locations]
    return bool(files) and all(any(_same(file, place / file.relative_to(folder)) for place in places) for file in files)


def _same(file: Path, other: Path) -> bool:
    return file.is_file() and other.is_file() and file.read_bytes() == other.read_bytes()
