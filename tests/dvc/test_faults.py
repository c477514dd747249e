"""Datasets under parallel writers, kills, stale locks, full disks, and whatever state the user's checkout is in."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.dvc import DvcResource
from dagster_mlops.errors import DatasetError
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "18"))


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def dvc(tmp_path):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))
    dvc.init()
    return dvc


@pytest.fixture
def stored(dvc):
    (dvc.root / "x.txt").write_text("one")
    return dvc.store("x.txt")


def _committed(dvc):
    """Path and hash of every version that git's history holds."""
    found = set()
    for commit in _git(dvc.root, "log", "--all", "--format=%H").splitlines():
        names = _git(dvc.root, "ls-tree", "-r", "--name-only", commit).splitlines()
        paths = [name.removesuffix(".dvc") for name in names if name.endswith(".dvc")]
        found |= {(path, dvc.data_version(path, rev=commit)) for path in paths}
    return sorted(found)


def assert_whole(dvc):
    """git is sound, each object's content is what its name says, and each committed version is in the cache."""
    assert _git(dvc.root, "fsck", "--strict", "--no-dangling") == ""
    cache = dvc.root / ".dvc" / "cache" / "files" / "md5"
    for folder in (Path(dvc.remote_url) / "files" / "md5", cache):
        for file in folder.rglob("*"):
            if file.is_file() and len(file.name.removesuffix(".dir")) == 30:  # DVC's temporary names are longer
                assert _md5(file.read_bytes()) == file.parent.name + file.name.removesuffix(".dir")
    for _, md5 in _committed(dvc):
        assert (cache / md5[:2] / md5[2:]).exists()


WRITER = """
import sys
from pathlib import Path
from dagster_mlops.dvc import DvcResource
repo, remote, number, versions = sys.argv[1:]
dvc = DvcResource(repo=repo, remote_url=remote, lock_timeout=120)
for version in range(int(versions)):
    for name in (f"own-{number}.txt", "shared.txt"):
        new = Path(repo, ".dvc", "tmp", f"{number}-{name}")
        new.write_text(f"{number} {version}")
        dvc.store(name, source=new)
"""


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.thorough)])
def test_writers_on_one_repository_lose_no_version(dvc, count):
    command = [sys.executable, "-c", WRITER, dvc.repo, dvc.remote_url]
    writers = [subprocess.Popen([*command, str(number), "2"]) for number in range(count)]
    assert [writer.wait(200) for writer in writers] == [0] * count
    contents = {f"{number} {version}" for number in range(count) for version in range(2)}
    for number in range(count):
        revs = _git(dvc.root, "log", "--format=%H", "--", f"own-{number}.txt.dvc").splitlines()
        assert [dvc.read_path(f"own-{number}.txt", rev=rev).read_text() for rev in revs] == [
            f"{number} {version}" for version in (1, 0)
        ]
    revs = _git(dvc.root, "log", "--format=%H", "--", "shared.txt.dvc").splitlines()
    assert {dvc.read_path("shared.txt", rev=rev).read_text() for rev in revs} == contents and len(revs) == len(contents)
    assert _git(dvc.root, "status", "--porcelain") == ""
    assert_whole(dvc)


STEPS = """
import sys
import dagster as dg
from dagster_mlops.dvc import DvcResource, dataset_asset

PARTS = dg.StaticPartitionsDefinition(["a", "b"])


def writer(number):
    @dataset_asset(name=f"w{number}", path=f"w{number}/{{partition}}.txt", partitions_def=PARTS)
    def write(context) -> str:
        return f"{number} {context.partition_key}"

    return write


def job():
    dvc = DvcResource(repo="data", remote_url="remote", lock_timeout=120)
    every = dg.define_asset_job("every", selection="*")
    defs = dg.Definitions(assets=[writer(n) for n in range(4)], jobs=[every], resources={"dvc": dvc})
    return defs.resolve_job_def("every")


if __name__ == "__main__":
    import writers

    how = {"max_concurrent": 4, "start_method": {"forkserver": {"preload_modules": ["writers", "dvc.repo.add"]}}}
    result = dg.execute_job(
        dg.reconstructable(writers.job),
        instance=dg.DagsterInstance.get(),
        tags={"dagster/partition": sys.argv[1]},
        run_config={"execution": {"config": {"multiprocess": how}}},
    )
    sys.exit(not result.success)
"""


@pytest.mark.thorough
def test_parallel_steps_of_parallel_runs_store_their_partitions(tmp_path):
    (tmp_path / "writers.py").write_text(STEPS)
    (tmp_path / "home").mkdir()
    env = {**os.environ, "DAGSTER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "writers.py")]
    # Neither finds a repository: each of the eight steps would create it.
    with dg.instance_for_test(temp_dir=env["DAGSTER_HOME"]):
        runs = [subprocess.Popen([*command, part], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) for part in "ab"]
        assert [run.wait(120) for run in runs] == [0, 0]
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))
    assert {path: dvc.read_path(path, md5=md5).read_text() for path, md5 in _committed(dvc)} == {
        f"w{number}/{part}.txt": f"{number} {part}" for number in range(4) for part in "ab"
    }
    assert _git(dvc.root, "status", "--porcelain") == ""
    assert_whole(dvc)


KILLED = """
import os, sys
from pathlib import Path
from dagster_mlops.dvc import DvcResource
import dvc.repo.status, dvc.stage, dvc_data.hashfile.build, dvc_data.hashfile.transfer  # before the clock starts
repo, remote = sys.argv[1:]
resource = DvcResource(repo=repo, remote_url=remote)
for line in sys.stdin:  # one store in a child per line
    child = os.fork()
    if not child:
        try:
            name, text = line.split(" ", 1)
            new = Path(repo, ".dvc", "tmp", f"new-{os.getpid()}")
            if name == "parts":
                new.mkdir()
                for number in range(20):
                    (new / f"{number}.txt").write_text(f"{number} {text}")
            else:
                new.write_text(text * 20_000)
            print(os.getpid(), flush=True)
            print("stored", resource.store(name, source=new).md5, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def _within(folder, pattern, known):
    return any(file not in known for file in folder.glob(pattern))


# What lies there while a store is at that point, and so when to kill: DVC's lock, a growing object in cache or remote,
# git's new objects and refs.
POINTS = {
    "at random": None,
    "add, locked": ("data/.dvc/tmp", "lock"),
    "add, caching": ("data/.dvc/cache/files/md5", "*/*"),
    "commit": ("data/.git/objects", "[0-9a-f][0-9a-f]/*"),
    "commit, branch": ("data/.git", "HEAD.lock"),
    "push": ("remote/files/md5", "*/*"),
}


def test_kill_9_in_add_commit_and_push_loses_no_version(dvc, stored, tmp_path):
    (dvc.root / "user.py").write_text("staged")
    _git(dvc.root, "add", "user.py")
    chance = random.Random(11)
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, dvc.repo, dvc.remote_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin and parent.stdout
    killed = dict.fromkeys(POINTS, 0)
    finished: set[str] = {stored.md5}
    longest = 0.0
    for number in range(KILLS):
        point = list(POINTS)[number % len(POINTS)]
        folder, pattern = POINTS[point] or ("", "")
        known = set((tmp_path / folder).glob(pattern)) if POINTS[point] and point != "add, locked" else set()
        parent.stdin.write(f"{'parts' if number // len(POINTS) % 2 else 'x.txt'} version {number}\n")
        parent.stdin.flush()
        started = time.monotonic()
        child = int(parent.stdout.readline())
        deadline = started + (chance.uniform(0, 0.4) if point == "at random" else 0.6)
        while time.monotonic() < deadline and not (POINTS[point] and _within(tmp_path / folder, pattern, known)):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        told = parent.stdout.readline()
        if told.startswith("stored "):
            finished.add(told.split()[1])
            told = parent.stdout.readline()
        else:
            killed[point] += 1
        assert told == "ended\n"
        longest = max(longest, time.monotonic() - started)
        if number % 6 == 5:
            (dvc.root / "other.txt").write_text(str(number))
            finished.add(dvc.store("other.txt").md5)  # what a kill leaves holds nobody up
    parent.communicate(timeout=20)
    assert parent.returncode == 0
    assert sum(killed.values()) > 0.5 * KILLS and longest < 20  # some end before the kill
    (dvc.root / "parts").mkdir(exist_ok=True)
    (dvc.root / "parts" / "last.txt").write_text("last")
    dvc.store("parts")  # a store that was killed before git ignored the folder is finished by the next one
    (dvc.root / "x.txt").write_text("last")
    assert dvc.store("x.txt").md5 == _md5(b"last") == dvc.data_version("x.txt", rev="HEAD")
    assert _git(dvc.root, "status", "--porcelain") == "A  user.py"
    assert_whole(dvc)
    subjects = _git(dvc.root, "log", "--format=%s", "--", "*.dvc").splitlines()
    assert len(subjects) == len(set(subjects))
    # The last store has pushed what the killed ones had committed, so the remote alone has every version.
    versions = _committed(dvc)
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    shutil.rmtree(dvc.root / ".dvc" / "tmp")
    lost = finished - {md5 for _, md5 in versions}
    for name, md5 in versions:
        try:
            dvc.read_path(name, md5=md5)
        except DatasetError:
            lost.add(md5)
    print(f"{sum(killed.values())} kills {killed}; {len(versions)} versions committed, {len(lost)} lost")
    assert lost == set()


def test_the_next_store_pushes_what_a_failed_push_left(dvc, stored, tmp_path):
    remote = Path(dvc.remote_url)
    remote.rename(tmp_path / "away")
    remote.write_text("a file where the folder was")
    for text in ("two", "three"):
        (dvc.root / "x.txt").write_text(text)
        with pytest.raises(DatasetError, match=r"cannot be pushed to .*its pointer is committed: re-run"):
            dvc.store("x.txt")
    remote.unlink()
    (tmp_path / "away").rename(remote)
    (dvc.root / "y.txt").write_text("y")
    dvc.store("y.txt")
    pushed = {file.parent.name + file.name for file in remote.rglob("*") if file.is_file()}
    assert {_md5(text) for text in (b"one", b"two", b"three", b"y")} == pushed
    assert not list((dvc.root / ".dvc" / "tmp" / "dagster_mlops" / "unpushed").iterdir())


def _cached(dvc, md5):
    return dvc.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


@pytest.mark.parametrize("damage", [b"", b"On", b"Two"])
def test_a_damaged_object_in_the_cache_is_noticed_and_fetched_again(dvc, stored, damage):
    (dvc.root / "x.txt").unlink()
    shutil.rmtree(dvc.root / ".dvc" / "tmp" / "dagster_mlops")
    object_ = _cached(dvc, stored.md5)
    object_.chmod(0o644)
    object_.write_bytes(damage)
    object_.chmod(0o444)  # DVC takes it for complete by that
    assert dvc.read_path("x.txt").read_text() == "one" == object_.read_text()


@pytest.mark.parametrize(("damage", "verify"), [("tw", False), ("Two", False), ("Two", True)])
def test_downloads_are_hashed_whatever_the_remote_says_of_verify(dvc, stored, damage, verify):
    damaged = Path(dvc.remote_url) / "files" / "md5" / stored.md5[:2] / stored.md5[2:]
    damaged.chmod(0o644)
    damaged.write_text(damage)
    damaged.chmod(0o444)  # DVC takes it for complete by that
    (dvc.root / "x.txt").unlink()
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    reader = DvcResource(repo=dvc.repo, remote_url=dvc.remote_url, remote_config={"verify": verify})
    with pytest.raises(DatasetError, match="holds other bytes under that hash"):
        reader.read_path("x.txt")
    assert not _cached(dvc, stored.md5).exists()


def test_a_copy_that_someone_wrote_into_is_not_served(dvc, stored):
    (dvc.root / "parts").mkdir()
    (dvc.root / "parts" / "a.txt").write_text("one")
    md5 = dvc.store("parts").md5
    for name, version, file in (("x.txt", stored.md5, ""), ("parts", md5, "a.txt")):
        shutil.rmtree(dvc.root / name) if file else (dvc.root / name).unlink()
        copy = dvc.read_path(name, md5=version) / file
        copy.chmod(0o644)
        copy.write_text("Two")  # as root, or after a chmod: where it is a link, the cache has it, too
        copy.chmod(0o444)
        assert (dvc.read_path(name, md5=version) / file).read_text() == "one"
        assert dvc.read_path(name, md5=version) / file == copy


@pytest.mark.parametrize("part", ["file", "list"])
def test_a_damaged_part_of_a_folder_is_noticed_in_cache_and_remote(dvc, stored, part):
    (dvc.root / "parts").mkdir()
    for number in range(3):
        (dvc.root / "parts" / f"{number}.txt").write_text(f"part {number}")
    md5 = dvc.store("parts").md5
    shutil.rmtree(dvc.root / "parts")
    damaged = md5 if part == "list" else _md5(b"part 1")
    _cached(dvc, damaged).chmod(0o644)
    _cached(dvc, damaged).write_text("[")
    assert [file.read_text() for file in sorted(dvc.read_path("parts").iterdir())] == ["part 0", "part 1", "part 2"]
    remote = Path(dvc.remote_url) / "files" / "md5" / damaged[:2] / damaged[2:]
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    remote.chmod(0o644)
    remote.write_text("[")
    with pytest.raises(DatasetError, match=r"parts at .*dir is neither in the workspace nor in the cache"):
        dvc.read_path("parts")


def test_a_cache_that_is_read_only_serves_what_it_has(small_disk, tmp_path):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))
    dvc.init()
    local = dvc.root / ".dvc" / "config.local"
    local.write_text(f"{local.read_text()}[cache]\n    dir = {small_disk}\n")
    (dvc.root / "x.txt").write_text("one")
    dvc.store("x.txt")
    (dvc.root / "x.txt").write_text("two")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert dvc.read_path("x.txt", rev="HEAD").read_text() == "one"
    with pytest.raises(DatasetError, match="Read-only file system"):
        dvc.store("x.txt")
    assert dvc.data_version("x.txt") == _md5(b"one")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert dvc.store("x.txt").md5 == _md5(b"two")


def test_a_lock_file_left_by_a_killed_process_holds_nobody_up(dvc, stored):
    # zc.lockfile's locks belong to a process, not to the file: a dead one's number in it means nothing.
    for text in ("999999", "", "garbage"):
        (dvc.root / ".dvc" / "tmp" / "lock").write_text(text)
        (dvc.root / "x.txt").write_text(f"after {text}")
        started = time.monotonic()
        dvc.store("x.txt")
        assert time.monotonic() - started < 10


def test_a_hard_link_lock_of_a_process_that_died_elsewhere_is_an_error_that_names_it(dvc, stored):
    # What DVC uses on NFS: the file itself is the lock, and says who holds it.
    config = dvc.root / ".dvc" / "config.local"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    hardlink_lock = true\n"))
    lock = dvc.root / ".dvc" / "tmp" / "lock"
    lock.unlink(missing_ok=True)
    claim = lock.with_name("lock.far-away.4711.1")
    claim.write_text(str(claim))
    os.link(claim, lock)
    future = time.time() + 3600
    os.utime(lock, (future, future))  # when it expires
    (dvc.root / "x.txt").write_text("two")
    with pytest.raises(DatasetError, match=r"held by process .*far-away\.4711.*If it died, delete that file"):
        DvcResource(repo=dvc.repo, lock_timeout=0.3).store("x.txt")
    lock.unlink()
    assert dvc.store("x.txt").md5 == _md5(b"two")


@pytest.mark.parametrize("stale", ["HEAD.lock", "refs/heads/{branch}.lock"])
def test_a_stale_ref_lock_of_git_is_an_error_that_names_the_file(dvc, stored, stale):
    branch = _git(dvc.root, "symbolic-ref", "--short", "HEAD")
    lock = dvc.root / ".git" / stale.format(branch=branch)
    lock.touch()
    (dvc.root / "x.txt").write_text("two")
    with pytest.raises(DatasetError, match=r"cannot move HEAD.*\.lock.*delete that file"):
        DvcResource(repo=dvc.repo, lock_timeout=0.3).store("x.txt")
    lock.unlink()
    record = dvc.store("x.txt")
    assert dvc.data_version("x.txt", rev=record.rev) == _md5(b"two")
    assert _git(dvc.root, "status", "--porcelain") == ""


@pytest.fixture
def small_disk(tmp_path):
    """An empty file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("full", ["cache", "workspace", "remote"])
def test_a_full_disk_loses_nothing_and_the_next_run_finishes(small_disk, tmp_path, full):
    repo = small_disk / "data" if full == "workspace" else tmp_path / "data"
    remote = small_disk / "remote" if full == "remote" else tmp_path / "remote"
    dvc = DvcResource(repo=str(repo), remote_url=str(remote))
    dvc.init()
    if full == "cache":
        local = repo / ".dvc" / "config.local"
        local.write_text(f"{local.read_text()}[cache]\n    dir = {small_disk}\n")
    (repo / "x.bin").write_bytes(b"one")
    first = dvc.store("x.bin")
    filler = small_disk / "filler"
    space = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"0" * (space - 1_200_000))
    content = os.urandom(1_000_000)  # fits once, not twice
    if full != "workspace":
        filler.write_bytes(b"0" * (space - 500_000))
    (repo / "x.bin").write_bytes(content)
    with pytest.raises(DatasetError, match="No space left"):
        dvc.store("x.bin")
    assert dvc.read_path("x.bin", md5=first.md5).read_bytes() == b"one"
    filler.unlink()
    record = dvc.store("x.bin")
    assert (repo / "x.bin").read_bytes() == content
    assert dvc.data_version("x.bin", rev="HEAD") == record.md5 == _md5(content)
    pushed = remote / "files" / "md5" / record.md5[:2] / record.md5[2:]
    assert pushed.read_bytes() == content and _git(repo, "fsck", "--strict", "--no-dangling") == ""


def test_a_folder_of_which_a_part_does_not_fit_is_no_version(small_disk, tmp_path):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))
    dvc.init()
    local = dvc.root / ".dvc" / "config.local"
    local.write_text(f"{local.read_text()}[cache]\n    dir = {small_disk}\n")
    (dvc.root / "parts").mkdir()
    for number in range(6):
        (dvc.root / "parts" / f"{number}.bin").write_bytes(os.urandom(1_000_000))
    with pytest.raises(DatasetError, match="No space left"):
        dvc.store("parts")
    assert not (dvc.root / "parts.dvc").exists()
    (dvc.root / "parts" / "5.bin").unlink()
    (dvc.root / "parts" / "4.bin").unlink()
    (dvc.root / "parts" / "3.bin").unlink()
    for leftover in small_disk.rglob("*"):
        if leftover.is_file():
            leftover.unlink()
    record = dvc.store("parts")
    assert record.md5.endswith(".dir") and dvc.data_version("parts", rev="HEAD") == record.md5


def test_a_detached_head_moves_and_no_branch_does(dvc, stored):
    branch = _git(dvc.root, "symbolic-ref", "--short", "HEAD")
    _git(dvc.root, "checkout", "-q", "--detach")
    (dvc.root / "x.txt").write_text("two")
    record = dvc.store("x.txt")
    assert _git(dvc.root, "rev-parse", "HEAD") == record.rev != stored.rev == _git(dvc.root, "rev-parse", branch)
    assert _git(dvc.root, "status", "--porcelain") == ""


def test_a_linked_worktree_commits_to_its_own_branch(dvc, stored, tmp_path):
    branch = _git(dvc.root, "symbolic-ref", "--short", "HEAD")
    _git(dvc.root, "worktree", "add", "-q", "-b", "try", str(tmp_path / "tree"))
    tree = DvcResource(repo=str(tmp_path / "tree"), remote_url=dvc.remote_url)
    assert tree.read_path("x.txt").read_text() == "one"
    (tree.root / "x.txt").write_text("two")
    record = tree.store("x.txt")
    assert record.rev == _git(dvc.root, "rev-parse", "try") and stored.rev == _git(dvc.root, "rev-parse", branch)
    assert _git(tree.root, "status", "--porcelain") == "" == _git(dvc.root, "status", "--porcelain")
    assert dvc.read_path("x.txt", rev="try").read_text() == "two"


def test_a_submodule_commits_to_itself(dvc, stored, tmp_path):
    _git(tmp_path, "init", "-q", "outer")
    allowed = ("-c", "protocol.file.allow=always")
    _git(tmp_path / "outer", *allowed, "submodule", "-q", "add", dvc.repo, "data")
    inner = DvcResource(repo=str(tmp_path / "outer" / "data"), remote_url=dvc.remote_url)
    (inner.root / "y.txt").write_text("y")
    record = inner.store("y.txt")
    assert _git(inner.root, "rev-parse", "HEAD") == record.rev
    assert _git(tmp_path / "outer", "diff", "--cached", "--name-only") == ".gitmodules\ndata"


def test_staged_and_unstaged_edits_stay_as_they_are_even_in_the_pointer(dvc, stored):
    pointer = dvc.root / "x.txt.dvc"
    for name in ("staged.py", "both.py", "edited.py"):
        (dvc.root / name).write_text("old")
    _git(dvc.root, "add", "both.py", "edited.py")
    _git(dvc.root, "commit", "-q", "-m", "Code")
    (dvc.root / "staged.py").write_text("new")
    (dvc.root / "both.py").write_text("staged")
    _git(dvc.root, "add", "staged.py", "both.py")
    (dvc.root / "both.py").write_text("edited after staging")
    (dvc.root / "edited.py").write_text("edited")
    (dvc.root / "untracked.py").write_text("untracked")
    pointer.write_text(pointer.read_text() + "desc: the user's\n")
    before = _git(dvc.root, "status", "--porcelain").replace(" M x.txt.dvc\n", "")
    index = _git(dvc.root, "ls-files", "--stage", "staged.py", "both.py", "edited.py")
    (dvc.root / "x.txt").write_text("two")
    record = dvc.store("x.txt")
    assert _git(dvc.root, "status", "--porcelain") == before
    assert _git(dvc.root, "ls-files", "--stage", "staged.py", "both.py", "edited.py") == index
    assert (dvc.root / "both.py").read_text() == "edited after staging"
    assert _git(dvc.root, "show", "--name-only", "--format=", record.rev) == "x.txt.dvc"
    assert "desc: the user's" in _git(dvc.root, "show", f"{record.rev}:x.txt.dvc")


def test_in_the_middle_of_a_merge_the_merge_stays_the_users(dvc, stored):
    branch = _git(dvc.root, "symbolic-ref", "--short", "HEAD")
    for name, text in (("side", "side"), (branch, "main")):
        _git(dvc.root, "checkout", "-q", "-B", name, stored.rev)
        (dvc.root / "code.py").write_text(text)
        _git(dvc.root, "add", "code.py")
        _git(dvc.root, "commit", "-q", "-m", text)
    assert subprocess.run(["git", "merge", "-q", "side"], cwd=dvc.root, capture_output=True).returncode == 1
    (dvc.root / "x.txt").write_text("two")
    record = dvc.store("x.txt")
    assert _git(dvc.root, "show", "--name-only", "--format=", record.rev) == "x.txt.dvc"
    assert _git(dvc.root, "status", "--porcelain") == "AA code.py"
    assert (dvc.root / ".git" / "MERGE_HEAD").exists()


def test_hooks_of_the_user_do_not_run(dvc, stored):
    for name in ("pre-commit", "commit-msg", "post-commit", "reference-transaction"):
        hook = dvc.root / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{dvc.root}/ran-{name}'\n")
        hook.chmod(0o755)
    (dvc.root / "x.txt").write_text("two")
    dvc.store("x.txt")
    # git itself runs this one whenever a branch moves.
    assert {file.name for file in dvc.root.glob("ran-*")} <= {"ran-reference-transaction"}


def test_nothing_is_pushed_to_a_git_remote_and_commits_can_be_turned_off(dvc, stored, tmp_path):
    _git(tmp_path, "clone", "-q", "--bare", dvc.repo, "origin.git")
    _git(dvc.root, "remote", "add", "origin", str(tmp_path / "origin.git"))
    (dvc.root / "x.txt").write_text("two")
    record = dvc.store("x.txt")
    assert _git(tmp_path / "origin.git", "rev-parse", "HEAD") == stored.rev
    (dvc.root / "x.txt").write_text("three")
    silent = DvcResource(repo=dvc.repo, remote_url=dvc.remote_url, commit=False)
    assert silent.store("x.txt").rev == "" and _git(dvc.root, "rev-parse", "HEAD") == record.rev
    assert _git(dvc.root, "status", "--porcelain") == "M x.txt.dvc"  # .strip() takes the leading space


def test_a_sparse_checkout_leaves_out_what_it_did(dvc, stored):
    (dvc.root / "code").mkdir()
    (dvc.root / "code" / "a.py").write_text("a")
    _git(dvc.root, "add", "code")
    _git(dvc.root, "commit", "-q", "-m", "Code")
    _git(dvc.root, "sparse-checkout", "set", "--no-cone", "/*", "!/code/")
    assert not (dvc.root / "code").exists()
    (dvc.root / "x.txt").write_text("two")
    record = dvc.store("x.txt")
    assert _git(dvc.root, "show", "--name-only", "--format=", record.rev) == "x.txt.dvc"
    assert _git(dvc.root, "show", "HEAD:code/a.py") == "a" and _git(dvc.root, "status", "--porcelain") == ""
