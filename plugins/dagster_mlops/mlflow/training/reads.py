"""Files and addresses without a version that a training reads, and environment variables."""

import hashlib
import os
import re
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import source_from_cache
from pathlib import Path, PurePath
from typing import Any

import dagster_mlops
from dagster_mlops.core.code_state import CodeState
from dagster_mlops.core.files import digest
from dagster_mlops.core.git import git
from dagster_mlops.provenance import Dataset, mask_credentials

_MOST_FILES = 500
_HASHED_LIMIT = 1_000_000_000  # bytes of all files together; the rest is named without a hash
# What Numba and PyTorch compile and keep, and the machine's libraries. A file `.pth` holds weights as often as paths.
_CODE = re.compile(
    r"\.(nbi|nbc)$|/torch(inductor_\w+|_extensions)/|^/(opt|usr|snap|run)/.*\.(so[.\d]*|jar)$", re.IGNORECASE
)
# Not `/usr/src`, where many an image has its application, and `/etc` only as far as no ConfigMap and no data are in it.
_SYSTEM = re.compile(
    r"^/(proc|sys|bin|sbin|lib(32|64|x32)?|usr/(local/)?(s?bin|lib(32|64|exec)?|share(?!/nltk_data)|include)"
    r"|usr/local/(cuda|nvidia)[^/]*|nix/store)/"
    r"|^/dev/(?!shm/)|^/run/(?!media/|user/|mount/)"
    r"|^/etc/(?!.*(/\.\.|\.(ya?ml|json|csv|tsv|parquet|toml|txt|pkl|pickle|joblib|npy|npz|db)$))"
    r"|^/etc/(vulkan|glvnd|OpenCL|nvidia|docker|dask|ssl|fonts)/"
)
# A file in a cache of git or DVC is named by its content, and cannot have another one.
_BY_CONTENT = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30,62}(\.dir)?$")
# What git and DVC keep in a repository and in DVC's cache of the machine: an IO manager opens it with the data.
_OF_REPOSITORY = re.compile(
    r"/\.(git|dvc)/|/\.git(ignore|attributes|modules)?$|/\.dvcignore$|\.dvc$|/dvc(_site_cache)?/repo/[0-9a-f]{32}/"
)
# Below the home folder: settings of common tools and fonts, but no other hidden folder: `~/.keras/datasets` holds data,
# and `~/.config/shop` may hold parameters. Matplotlib's list of fonts may be anywhere.
_SETTINGS = re.compile(
    r"^\.[^/]+$|^\.keras/keras\.json$|^\.local/(lib|state|bin|share/fonts)/|^\.cache/(matplotlib|fontconfig|pip|uv)/"
    r"|^\.config/(matplotlib|fontconfig|pip|uv|git|gh|dvc|gcloud|dask|wandb|kaggle|jupyter|numba|snowflake|pypoetry|rclone)/"
    r"|^\.(aws|azure|boto|gsutil|kube|docker|ssh|gnupg|netrc|jupyter|ipython|matplotlib|conda|mamba|pyenv|uv|dagster"
    r"|dagster_home|dagster_cloud_cli|dvc|mlflow|databricks|streamlit|nv|pip|cargo|rustup|triton|numba|fonts)/"
)
_PACKAGES = re.compile(r"/(site|dist)-packages(/|$)")
_LIBRARY = re.compile(r"\.(so[.\d]*|jar)$")
_FONTS = re.compile(r"/fontlist-v[\d.]+\.json$")
# Variables of the machine and of the tools themselves, and what may be a weak secret, whose hash could be guessed.
_NOT_NAMED = re.compile(
    r"^(_.*|PATH|HOME|PWD|OLDPWD|USER|LOGNAME|SHELL|TERM|COLUMNS|LINES|TE?MP(DIR)?|LANG|LC_\w+|HOSTNAME|DISPLAY)$"
    r"|^(MLFLOW|DAGSTER|PYTHON|XDG|VIRTUAL_ENV|PYTEST|CONDA|DBUS|KUBERNETES|SSH|NO_COLOR|FORCE_COLOR|MPLCONFIGDIR)"
    r"|PASSW|SECRET|TOKEN|KEY|CREDENTIAL|LOGIN|_AUTH",
    re.IGNORECASE,
)
# Of the calls that change the time of a file, by which one that was there before is known.
_TOUCHES = ("os.link", "os.rename", "os.chmod", "os.chown", "os.utime")
_ON, _OFF = "/dagster-mlops/watch-on", "/dagster-mlops/watch-off"  # see `_syscalls_script.py`
_current: "Reads | None" = None
_hooked = False


def _clock_of_files() -> float:
    """The time that a file gets when it changes now; Linux takes it from a clock that is some milliseconds behind."""
    return time.clock_gettime(5) if sys.platform == "linux" else time.time()


@dataclass
class Reads:
    """The absolute paths, addresses and names of variables that were read while it was watched."""

    since: float = field(default_factory=_clock_of_files)
    files: dict[str, None] = field(default_factory=dict)
    addresses: dict[str, None] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    before: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    of_tools: set[str] = field(default_factory=set)  # files of the tools themselves
    touched: set[str] = field(default_factory=set)  # files that were there before, with a new time

    def note(self, path: Any) -> None:
        """Note a file that was there before; one that was written meanwhile is not an input."""
        name = os.path.abspath(os.fsdecode(path))
        if name in self.files or _SYSTEM.search(name) or _CODE.search(name):
            return
        with suppress(OSError):
            if os.path.isfile(name) and (os.stat(name).st_ctime < self.since or name in self.touched):
                self.files[name] = None

    def note_touched(self, path: Any) -> None:
        """Note a file that will have a new time."""
        name = os.path.abspath(os.fsdecode(path))
        with suppress(OSError):
            if os.path.isfile(name) and os.stat(name).st_ctime < self.since:
                self.touched.add(name)


@contextmanager
def watched_reads() -> Iterator[Reads]:
    """Watch what this process reads, in any thread, until the block ends.

    Python announces the files that Python code opens, the databases of `sqlite3` and the addresses of `urllib`
    (https://peps.python.org/pep-0578/). Files that a library opens in C, and other processes, stay unseen here; a
    rerun has a watcher that sees them.
    """
    global _current, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # once: Python cannot remove it
        _hooked = True
    outer, reads = _current, Reads()
    # `os.environ` announces nothing, but encodes the name at each access, and decodes it when it lists the names: then
    # the environment is copied for another process.
    environ: Any = os.environ
    encode, decode, copied_names = environ.encodekey, environ.decodekey, set()

    def encodekey(name: Any) -> Any:
        if sys._getframe(1).f_code.co_name == "__getitem__":
            if name in copied_names:
                copied_names.discard(name)
            else:
                reads.variables.add(name)
        return encode(name)

    def decodekey(key: Any) -> Any:
        copied_names.add(name := decode(key))
        return name

    environ.encodekey, environ.decodekey, _current = encodekey, decodekey, reads
    _tell_watcher(_ON)
    try:
        yield reads
    finally:
        _tell_watcher(_OFF)
        environ.encodekey, environ.decodekey, _current = encode, decode, outer


def _tell_watcher(name: str) -> None:
    """Tell the process that watches a rerun, if there is one: it sees that this file is opened, which is not there."""
    with suppress(OSError):
        os.close(os.open(name, os.O_RDONLY))


def not_an_input(path: Path) -> None:
    """Leave a file of a tool itself, such as its database, out of what is watched now."""
    if _current is not None:
        _current.of_tools.add(str(path))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    reads = _current
    if reads is None or event not in ("open", "sqlite3.connect", "urllib.Request", *_TOUCHES):
        return
    with suppress(Exception):  # it would be raised by the user's `open`
        subject = arguments[0]
        if event in ("os.link", "os.rename"):
            reads.note(subject)
        elif event in _TOUCHES:
            reads.note_touched(subject)
        elif event == "urllib.Request":
            reads.addresses[mask_credentials(str(subject))] = None
        elif isinstance(subject, str | bytes | os.PathLike) and not (event == "open" and _only_written(arguments[2])):
            reads.note(subject)


def _only_written(flags: int) -> bool:
    return flags & os.O_ACCMODE == os.O_WRONLY


def unversioned(reads: Reads, code: CodeState, inputs: Iterable[Dataset], tool_paths: Iterable[str]) -> dict[str, Any]:
    """The ``files``, ``addresses`` and ``variables`` that were read and that no commit and no record versions.

    Each file has its size and the hash of its content; one in the checkout is named relative to it. Of a variable,
    there is a short hash of the value.

    Args:
        reads: The reads of the training.
        code: The checkout of the training: its files are versioned, except those that git ignores.
        inputs: The recorded inputs, whose files may be opened in the training.
        tool_paths: Files and folders of Dagster and MLflow.
    """
    apart = [os.path.realpath(place) for place in (*_installed(), *tool_paths, *reads.of_tools) if place]
    recorded = {os.path.realpath(os.path.join(i.repo, i.path)): i.md5 for i in inputs if "://" not in i.repo}
    real = {name: os.path.realpath(name) for name in dict.fromkeys(map(_source, reads.files))}
    unknown = {n: r for n, r in real.items() if not _known(r, apart) and not _recorded(r, recorded)}
    files, left = {}, _HASHED_LIMIT
    for name, label in _uncommitted(unknown, code).items():
        files[label] = {"bytes": 0, "sha256": ""}
        with suppress(OSError):  # the training may have moved it
            size = os.path.getsize(name)
            left -= size
            files[label] = {"bytes": size, "sha256": digest(Path(name)) if left >= 0 else ""}
    variables = sorted(n for n in reads.variables if n in reads.before and not _NOT_NAMED.search(n))
    facts: dict[str, Any] = {
        "files": dict(sorted(files.items())[:_MOST_FILES]),
        "more_files": max(0, len(files) - _MOST_FILES),
        "addresses": list(reads.addresses),
        "variables": {n: hashlib.sha256(os.fsencode(reads.before[n])).hexdigest()[:16] for n in variables},
    }
    return {name: value for name, value in facts.items() if value}


def _source(file: str) -> str:
    """The code of a file of bytecode, if it is there."""
    with suppress(ValueError, NotImplementedError):
        if file.endswith(".pyc") and os.path.isfile(source := source_from_cache(file)):
            return source
    return file


def _recorded(file: str, recorded: Mapping[str, str]) -> bool:
    """True for the files of recorded datasets; not for one whose content has changed since it was recorded."""
    if file in recorded:
        return digest(Path(file), "md5") == recorded[file]
    return any(_below(file, place) for place in recorded)


def _known(file: str, apart: Iterable[str]) -> bool:
    if _SYSTEM.search(file) or _CODE.search(file):
        return True
    home = os.path.expanduser("~") + os.sep
    is_setting = file.startswith(home) and _SETTINGS.search(file.removeprefix(home))
    is_own = any(pattern.search(file) for pattern in (_FONTS, _BY_CONTENT, _OF_REPOSITORY))
    return bool(is_setting or is_own or any(_below(file, place) for place in apart))


def _below(file: str, place: str) -> bool:
    return file == place or file.startswith(place.rstrip(os.sep) + os.sep)


def _installed() -> list[str]:
    """Folders of Python and its packages, and of this one, which may be linked to a checkout.

    A rerun runs this file from the command's package, in an environment that may have another.
    """
    this = [str(Path(file).parent) for file in (Path(__file__).parents[1], dagster_mlops.__file__)]
    packages = [place for place in sys.path if _PACKAGES.search(place)]
    return [*this, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *packages]


def _uncommitted(files: Mapping[str, str], code: CodeState) -> dict[str, str]:
    """Those of the files (with their real paths) that no commit holds, and no uncommitted change: with short names."""
    top = os.path.realpath(code.toplevel) if code.toplevel else ""
    inside = {name: os.path.relpath(real, top) for name, real in files.items() if top and _below(real, top)}
    if not inside:
        return {name: name for name in files}
    kept_out = _ignored(top, inside.values(), code.submodules)
    kept_out = {path for path in kept_out if not _LIBRARY.search(path)}  # built from the code of the commit
    left_out = {name.rstrip("/") for name in code.left_out}
    kept_out |= {path for path in inside.values() if not left_out.isdisjoint([path, *map(str, PurePath(path).parents)])}
    return {name: inside.get(name, name) for name in files if name not in inside or inside[name] in kept_out}


def _ignored(top: str, paths: Iterable[str], submodules: Iterable[str]) -> set[str]:
    """Those of the paths that git ignores. It answers for one repository, and for no path of a submodule."""
    groups: dict[str, list[str]] = {}
    innermost = sorted(submodules, key=len, reverse=True)
    for path in paths:
        groups.setdefault(next((folder for folder in innermost if _below(path, folder)), "."), []).append(path)
    ignored = set()
    for folder, names in groups.items():
        stdin = b"\0".join(os.fsencode(os.path.relpath(name, folder)) for name in names)
        answer = git(Path(top, folder), "check-ignore", "-z", "--stdin", stdin=stdin)
        if answer.returncode > 1:  # it cannot tell
            ignored.update(names)
        answers = (os.fsdecode(name) for name in answer.stdout.split(b"\0") if name)
        ignored.update(os.path.normpath(os.path.join(folder, name)) for name in answers)
    return ignored
