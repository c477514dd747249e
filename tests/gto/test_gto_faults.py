"""GTO's registry when something is wrong with the tags, the names, the remote or a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagster_mlops.errors import ModelVersionError, ProvenanceError, RegistryError
from dagster_mlops.gto import GtoResource
from dagster_mlops.gto.tool import GtoTool
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.provenance import Faulty, ModelVersion, Ref
from tests.support import known_warnings

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DAGSTER_BETA]


def git(folder: Path, *arguments: str, date: str = "") -> str:
    identity = ["-c", "user.name=ml", "-c", "user.email=ml@example.com"]
    environment = {**os.environ, **({"GIT_COMMITTER_DATE": date} if date else {})}
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "commit", "-q", "--allow-empty", "-m", f"Train in {folder}")
    return git(folder, "rev-parse", "HEAD")


def tag(folder: Path, name: str, date: str = "") -> None:
    commit(folder)
    git(folder, "tag", "-a", name, "-m", "by hand", date=date)


def register(folder: Path, name: str = "churn", *, remote: str | None = None, version: str | None = None) -> str:
    with GtoResource(repo=str(folder), remote=remote).models() as models:
        return models.register(name, rev="HEAD", version=version, upstream=(), metrics={"auc": 0.7}).version


def version(folder: Path, name: str = "churn", which: str = "", *, remote: str | None = None) -> ModelVersion:
    with GtoResource(repo=str(folder), remote=remote).models() as models:
        return models.version(name, which)


def move(folder: Path, alias: str, to: str, expected: str = "", *, remote: str | None = None) -> bool:
    with GtoResource(repo=str(folder), remote=remote).models() as models:
        return models.move("churn", alias, to, expected=expected)


@pytest.fixture
def repo(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder)
    return folder


@pytest.fixture
def shared(repo, tmp_path) -> tuple[Path, Path]:
    """Two clones of one remote."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "server.git")
    git(repo, "remote", "add", "origin", str(tmp_path / "server.git"))
    git(repo, "push", "-q", "origin", "main")
    git(tmp_path, "clone", "-q", str(tmp_path / "server.git"), "clone")
    return repo, tmp_path / "clone"


def test_tags_made_by_hand_are_read_as_gto_reads_them(repo):
    for name in ("churn@v1.2.3-rc1", "churn@v1.0.0", "team/churn@v0.1.0", "a=churn@v2.0.0"):
        tag(repo, name)
    for name in ("churn@vX", "churn@", "churn#prod", "churn#prod#3!", "churn#prod#x", "a@b@c", "churn@v01.0.0"):
        tag(repo, name)
    git(repo, "tag", "churn@v9.0.0")  # not annotated
    assert version(repo).version == "v1.2.3-rc1"
    assert version(repo, "team/churn").version == "v0.1.0"
    assert version(repo, "a:churn").version == "v2.0.0"
    assert GtoTool().resolve(Ref("gto", "model_version", "team/churn/v0.1.0", at=str(repo))).bucket == "accessible"
    assert move(repo, "champion", "v1.2.3-rc1")
    assert move(repo, "champion", "v1.2.3-rc1", "v1.2.3-rc1"), "who holds it can be given it"
    assert version(repo, "churn", "@champion").version == "v1.2.3-rc1"
    with pytest.raises(ModelVersionError, match="annotated tags only"):
        version(repo, "churn", "v9.0.0")


def test_tags_that_gto_refuses_stop_their_own_model_only(repo):
    tag(repo, "other@v1.0.0")
    git(repo, "tag", "-a", "other@v1.0.1", "-m", "a second version of the commit")
    git(repo, "tag", "-a", "other#prod#1", "-m", "of which of them?")
    assert register(repo) == "v0.0.1"
    assert move(repo, "champion", "v0.0.1")
    assert version(repo, "churn", "@champion").version == "v0.0.1"
    with pytest.raises(RegistryError, match=r"(?s)'other', versions .*Remove one of these tags: `git tag -d TAG`"):
        version(repo, "other")
    assert GtoTool().resolve(Ref("gto", "model_version", "other/v1.0.0", at=str(repo))).bucket == "inaccessible"


@pytest.mark.parametrize("alias", ["champion#1", "champion!", "a..b", "the champion", "~", ""])
def test_an_alias_that_no_tag_could_hold_is_refused_before_anything_is_written(repo, alias):
    register(repo)
    before = git(repo, "for-each-ref")
    with pytest.raises(RegistryError, match="Only letters, numbers"):
        move(repo, alias, "v0.0.1")
    with pytest.raises(RegistryError, match="Only letters, numbers"):
        version(repo, "churn", f"@{alias}")
    assert git(repo, "for-each-ref") == before


def test_a_registration_that_cannot_be_says_why(repo, tmp_path):
    assert register(repo, version="v3.0.0") == "v3.0.0"
    with pytest.raises(RegistryError, match=r"is version v3\.0\.0 of 'churn' already, .* leave out version="):
        register(repo, version="v4.0.0")
    commit(repo)
    with pytest.raises(RegistryError, match=r"version v3\.0\.0 of 'churn' is commit .*Take another number"):
        register(repo, version="v3.0.0")
    with pytest.raises(RegistryError, match=r"'1\.0' cannot be parsed"):
        register(repo, version="1.0")
    with pytest.raises(RegistryError, match="Only letters, numbers"):
        register(repo, "my model")
    assert register(repo) == "v3.0.1"
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    with pytest.raises(RegistryError, match=r"'HEAD' is not a commit .*Commit the model's files first"):
        register(empty)


def test_a_version_that_was_taken_back_is_not_given_again(repo):
    assert register(repo) == "v0.0.1"
    git(repo, "tag", "-a", "churn@v0.0.1!", "-m", "take back", "churn@v0.0.1^{}", date="2035-01-01T00:00:00")
    with pytest.raises(RegistryError, match="which was deregistered"):
        register(repo)
    commit(repo)
    assert register(repo) == "v0.0.2"


def test_a_record_that_is_damaged_is_named_and_written_anew_by_the_next_registration(repo):
    register(repo)
    for damage in (b"\xff\xfe{", b'{"schema": 99}', b"[" * 10_000, b'"text"'):
        with GtoResource(repo=str(repo)).models() as models:
            models._keep("refs/dagster_mlops/churn@v0.0.1/notes/dagster_mlops.record", damage)
            assert models.version("churn").metrics == {}, "whoever may push stops no promotion by it"
            with pytest.raises(
                ProvenanceError, match=r"version v0\.0\.1 of 'churn' cannot be read.*Register its commit"
            ):
                models.recorded("churn", "v0.0.1")
        answer = GtoTool().resolve(Ref("gto", "model_version", "churn/v0.0.1", at=str(repo)))
        assert (
            isinstance(answer, Faulty) and answer.record and [ref.role for ref in answer.record.upstream] == ["commit"]
        )
        register(repo)
        assert version(repo).metrics == {"auc": 0.7}


@pytest.mark.thorough
def test_a_registry_of_a_thousand_tags_is_read_in_the_time_that_the_models_own_tags_take(repo):
    head = git(repo, "rev-parse", "HEAD^{tree}")
    lines = []
    for number in range(500):
        made = git(repo, "commit-tree", "-m", str(number), head)
        for name in (f"model{number % 10}@v1.0.{number}", f"model{number % 10}#champion#{number + 1}"):
            text = f"object {made}\ntype commit\ntag {name}\ntagger m <m@x> {1_700_000_000 + number} +0000\n\nx\n"
            process = subprocess.run(["git", "mktag"], cwd=repo, input=text, check=True, capture_output=True, text=True)
            lines.append(f"create refs/tags/{name} {process.stdout.strip()}\n")
    subprocess.run(["git", "update-ref", "--stdin"], cwd=repo, input="".join(lines), check=True, text=True)
    register(repo)

    def seconds(ask: Callable[[], ModelVersion]) -> float:
        start = time.process_time()
        ask()
        return time.process_time() - start

    with GtoResource(repo=str(repo)).models() as models:
        assert models.version("model3", "@champion").version == "v1.0.493"
        # 100 of 1,001 tags: reading all of them for each question took 3 s here.
        assert min(seconds(lambda: models.version("model3", "@champion")) for _ in range(3)) < 0.5


def test_a_clock_that_was_set_back_changes_neither_the_newest_version_nor_the_next_move(repo):
    tag(repo, "churn@v1.0.0", "2026-01-01T00:00:00")
    tag(repo, "churn@v1.0.1", "2025-01-01T00:00:00")
    git(repo, "tag", "-a", "churn#champion#1", "-m", "x", "churn@v1.0.0^{}", date="2035-01-01T00:00:00")
    assert version(repo).version == "v1.0.1"
    assert move(repo, "champion", "v1.0.1", "v1.0.0") and version(repo, "churn", "@champion").version == "v1.0.1"
    assert move(repo, "champion", "v1.0.0", "v1.0.1") and version(repo, "churn", "@champion").version == "v1.0.0"


def test_a_shallow_clone_and_a_detached_head_work_as_any_clone(shared, tmp_path):
    repo, _ = shared
    git(repo, "checkout", "-q", "--detach")
    assert register(repo, remote="origin") == "v0.0.1"
    assert move(repo, "champion", "v0.0.1", remote="origin")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path / 'server.git'}", "shallow")
    held = version(tmp_path / "shallow", "churn", "@champion", remote="origin")
    assert held.version == "v0.0.1" and held.metrics == {"auc": 0.7}
    assert [ref.at for ref in held.upstream] == [str(tmp_path / "shallow")], "the commit is looked up in this clone"


def test_of_two_clones_that_register_at_once_the_second_is_refused_and_takes_the_next_number(shared, monkeypatch):
    ours, theirs = shared
    commit(ours)
    commit(theirs)
    with GtoResource(repo=str(theirs), remote="origin").models() as models:
        tag_object = models._tag_object

        def after_the_rival(*arguments: Any) -> Any:
            assert register(ours, remote="origin") == "v0.0.1"
            return tag_object(*arguments)

        monkeypatch.setattr(models, "_tag_object", after_the_rival)
        with pytest.raises(RegistryError, match=r"(?s)'origin' of the model registry refuses this: .*churn@v0\.0\.1"):
            models.register("churn", rev="HEAD", version=None, upstream=(), metrics={})
    assert register(theirs, remote="origin") == "v0.0.2"


def test_a_remote_that_cannot_be_used_is_named_with_the_fix(shared, tmp_path):
    ours, theirs = shared
    for remote in ("nowhere", "--upload-pack=true"):
        with pytest.raises(RegistryError, match=rf"(?s){remote}' .*\(known remotes: origin\).*Correct remote="):
            version(ours, remote=remote)
    hook = tmp_path / "server.git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho read-only >&2; exit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RegistryError, match=r"(?s)refuses this: .*read-only.*right to push refs/tags/\*"):
        register(ours, remote="origin")
    assert git(ours, "tag") == "", "a version that the remote has not accepted is none"
    hook.unlink()
    tag(theirs, "churn@v1.0.0")
    git(theirs, "push", "-q", "origin", "churn@v1.0.0")
    tag(ours, "churn@v1.0.0")
    with pytest.raises(RegistryError, match=r"(?s)churn@v1\.0\.0.*would clobber existing tag.*tag -d TAG"):
        version(ours, remote="origin")


_MOVE = """
import sys
from dagster_mlops.gto import GtoResource

folder, remote, alias, to = sys.argv[1:]
with GtoResource(repo=folder, remote=remote or None).models() as models:
    sys.stdin.readline()
    print(models.move("churn", alias, to, expected=""))
"""


@pytest.mark.parametrize("remote", ["", "origin"])
def test_processes_that_move_different_aliases_at_once_all_win_and_rivals_for_one_do_not(shared, remote):
    ours, theirs = shared
    first = register(ours, remote="origin")
    commit(ours)
    second = register(ours, remote="origin")
    wishes = [(ours, "blue", first), (theirs if remote else ours, "green", second)]
    wishes += [(ours, "red", first), (theirs if remote else ours, "red", second)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MOVE, str(folder), remote, alias, to],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder, alias, to in wishes
    ]
    answers = [process.communicate("go\n", timeout=120)[0].strip().endswith("True") for process in processes]
    assert answers[:2] == [True, True] and answers.count(True) == 3
    held = [version(ours, "churn", f"@{alias}", remote=remote or None).version for alias in ("blue", "green", "red")]
    assert held == [first, second, first if answers[2] else second]


_KILLED = """
import os, signal, sys
from pathlib import Path
from dagster_mlops.gto import GtoResource
from dagster_mlops.gto import models as module
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion import Improvement
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.moves import promote_version

folder, what, dies_before = sys.argv[1], sys.argv[2], int(sys.argv[3])
git, calls = module.git, iter(range(1_000))

def counting(repo, *arguments, **options):
    if arguments[0] in ("push", "update-ref") and next(calls) == dies_before:
        os.kill(os.getpid(), signal.SIGKILL)
    return git(repo, *arguments, **options)

with GtoResource(repo=folder, remote="origin").models() as models:
    module.git = counting
    if what == "register":
        models.register("churn", rev="HEAD", version=None, upstream=(), metrics={"auc": 0.8})
    else:
        version = models.version("churn", what)
        gate = Gate([Improvement(metric="auc")], Case(models, version))
        promote_version(models, version, "champion", gate.judge, Author("test"))
"""


def run_killed(folder: Path, what: str, before: int) -> bool:
    """Whether it was killed before its push or change of refs with that number; False: it has no more of them."""
    process = subprocess.run([sys.executable, "-c", _KILLED, str(folder), what, str(before)], check=False)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.thorough
def test_a_registration_and_a_promotion_that_are_killed_anywhere_are_completed_by_the_next_run(shared):
    ours, theirs = shared
    register(ours, remote="origin")
    assert not run_killed(ours, "v0.0.1", 999)
    number, step, killed = 1, 0, True
    while killed:  # at every step
        commit(ours)
        number += 1
        killed = run_killed(ours, "register", step)
        run_killed(ours, "register", 999)
        assert version(theirs, remote="origin").version == version(ours).version == f"v0.0.{number}"
        assert version(theirs, remote="origin").metrics == {"auc": 0.8}
        step += 1
    assert step > 3
    for step in range(100):
        with GtoResource(repo=str(ours), remote="origin").models() as models:
            holder = models.version("churn", "@champion").version
            if holder != "v0.0.1":
                assert models.move("churn", "champion", "v0.0.1", expected=holder)
        killed = run_killed(ours, f"v0.0.{number}", step)
        run_killed(ours, f"v0.0.{number}", 999)
        with GtoResource(repo=str(theirs), remote="origin").models() as models:
            assert models.version("churn", "@champion").version == f"v0.0.{number}"
            moves = moves_of(models, "churn", "champion")
            assert [move.before for move in moves[1:]] == [move.after for move in moves[:-1]], "no move is missing"
            assert moves[-1].after == f"v0.0.{number}" and moves[-1].kind == "promotion"
        if not killed:
            break
    assert step > 5
