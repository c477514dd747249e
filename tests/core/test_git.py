"""git runs no program that a foreign checkout names, and takes no revision for an option."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dagster_mlops.core.git import git, plain_revision, runs_no_code_of_checkouts
from dagster_mlops.dvc import DvcResource
from dagster_mlops.dvc.history.versions import history, version_hash
from dagster_mlops.dvc.imports import _commit
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.errors import DatasetError, RegistryError
from dagster_mlops.git import GitTool
from dagster_mlops.gto import GtoResource
from dagster_mlops.gto.tool import GtoTool
from dagster_mlops.provenance import Ref
from dagster_mlops.tools import answer_within
from tests.support import known_warnings

pytestmark = [*known_warnings.DVC, *known_warnings.UNCLOSED]

# Settings of a checkout that name a program.
PROGRAMS = ["core.fsmonitor", "core.sshCommand", "core.askPass", "core.pager", "core.editor", "core.gitProxy"]
PROGRAMS += ["credential.helper", "gpg.program", "diff.external", "diff.evil.textconv", "diff.evil.command"]
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
PROGRAMS += ["filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "filter.a=b.smudge"]
SETTINGS = {
    "log.showSignature": "true",
    "protocol.ext.allow": "always",
    "extensions.partialClone": "origin",
    "remote.origin.promisor": "true",
    "remote.origin.url": "ssh://host.invalid/x",
    "core.repositoryformatversion": "1",
}
NOWHERE = "f" * 40


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _poison(top, ran):
    """Give a checkout settings, attributes and hooks that note in `ran` which of them was run."""

    def program(name):
        script = top.parent / f"{name.replace('/', '-')}.sh"
        script.write_text(f"#!/bin/sh\ntouch '{ran}/{name}'\ncat 2>/dev/null\nexit 1\n")
        script.chmod(0o755)
        return str(script)

    (top / ".git" / "info").mkdir(exist_ok=True)
    (top / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil\n*.txt filter=a=b\n")
    for name, value in {**{name: program(name) for name in PROGRAMS}, **SETTINGS}.items():
        _git(top, "config", name, value)
    for hook in ("post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"):
        file = top / ".git" / "hooks" / hook
        file.parent.mkdir(exist_ok=True)
        file.write_text(Path(program(f"hook-{hook}")).read_text())
        file.chmod(0o755)
    for file in top.glob("*.*"):
        os.utime(file, (1, 1))  # the index no longer says that it is unchanged


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A DVC repository with a registry of models, poisoned; and a folder for what ran."""
    top, ran = tmp_path_factory.mktemp("evil") / "repo", tmp_path_factory.mktemp("ran")
    dvc = DvcResource(repo=str(top), push=False)
    dvc.init()
    (top / "x.txt").write_text("one")
    dvc.store("x.txt")
    (top / "model").write_text("m")
    _git(top, "add", ".")
    _git(top, "commit", "-qm", "x")
    with GtoResource(repo=str(top)).models() as models:
        models.register("delay", rev="HEAD", version="v1.0.0", upstream=())
    _poison(top, ran)
    return top, ran


@pytest.mark.parametrize(
    "command",
    [
        ("rev-parse", "HEAD"),
        ("log", "-Sone", "--all", "--format=%H", "--", "./x.txt.dvc"),
        ("log", "-1", "--format=%H %G?"),
        ("show", "HEAD:./x.txt.dvc"),
        ("show", "--no-patch", "HEAD"),
        ("show", NOWHERE),
        ("diff", EMPTY_TREE, "HEAD"),
        ("diff-tree", "-p", EMPTY_TREE, "HEAD"),
        ("cat-file", "--filters", "HEAD:./x.txt.dvc"),
        ("cat-file", "-e", NOWHERE),
        ("ls-files", "--cached", "--others", "--exclude-standard"),
        ("status", "--porcelain"),
        ("check-ignore", "-q", "x.txt"),
        ("fetch", "origin"),
        ("ls-remote", "ext::sh -c touch% ran"),
    ],
    ids=" ".join,
)
def test_a_checkout_that_is_not_trusted_runs_nothing(checkout, command):
    top, ran = checkout
    with runs_no_code_of_checkouts():
        answer = git(top, *command)
    assert os.listdir(ran) == []
    refused = NOWHERE in command or command[0] in ("fetch", "ls-remote", "check-ignore")
    assert refused or answer.returncode == 0, answer.stderr


@pytest.fixture(scope="module")
def with_submodule(tmp_path_factory):
    """A checkout whose submodule has changed and is poisoned; and a folder for what ran."""
    root, ran = tmp_path_factory.mktemp("sub"), tmp_path_factory.mktemp("ran")
    for name in ("lib", "top"):
        _git(root, "init", "-q", name)
        (root / name / "x.md").write_text("one")
        _git(root / name, "add", ".")
        _git(root / name, "commit", "-qm", "x")
    top, lib = root / "top", root / "top" / "lib"
    (root / "lib").rename(lib)
    _git(top, "-c", "advice.addEmbeddedRepo=false", "add", "lib")
    _git(top, "commit", "-qm", "lib")
    (lib / "x.md").write_text("two")
    _git(lib, "commit", "-qam", "y")
    _git(top, "commit", "-qam", "lib again")
    (lib / "x.md").write_text("six")
    _poison(lib, ran)
    settings = {"diff.submodule": "diff", "diff.ignoreSubmodules": "none", "status.submoduleSummary": "true"}
    for name, value in {**settings, "submodule.lib.ignore": "none", "submodule.recurse": "true"}.items():
        _git(top, "config", name, value)
    (top / ".gitmodules").write_text('[submodule "lib"]\n\tpath = lib\n\turl = ../lib\n\tignore = none\n')
    return top, ran


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("status", "--porcelain=v2", "--ignore-submodules=none"),
        ("diff",),
        ("-c", "diff.ignoreSubmodules=none", "diff", "--submodule=diff", "--ignore-submodules=none", "HEAD"),
        ("diff", "--numstat", "HEAD~2", "HEAD"),
        ("diff-index", "HEAD"),
        ("show", "HEAD"),
        ("log", "-p", "--all"),
        ("submodule", "status", "--recursive"),
        ("ls-files", "--modified"),
    ],
    ids=" ".join,
)
def test_a_submodule_of_a_checkout_that_is_not_trusted_runs_nothing(with_submodule, command):
    top, ran = with_submodule
    with runs_no_code_of_checkouts():
        answer = git(top, *command)
    assert os.listdir(ran) == [] and answer.returncode == 0, answer.stderr


@pytest.mark.usefixtures("warm_dvc")
def test_no_tool_runs_what_a_checkout_names_and_none_starts_git_by_itself(checkout, monkeypatch, tmp_path):
    top, ran = checkout
    seen, real = tmp_path / "seen", shutil.which("git")
    (shim := tmp_path / "bin" / "git").parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$GIT_ALLOW_PROTOCOL/$GIT_CONFIG_COUNT $*" >> {seen}\nexec {real} "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(shim.parent), prepend=os.pathsep)
    sha, md5 = _git(top, "rev-parse", "HEAD"), DvcResource(repo=str(top)).data_version("x.txt")
    seen.unlink()
    answers = {}
    assert real
    with runs_no_code_of_checkouts():
        for tool, role, id in (
            (GitTool(), "commit", sha),
            (GitTool(), "commit", NOWHERE),
            (DvcTool(), "dataset", f"x.txt@{md5}"),
            (DvcTool(), "dataset", f"x.txt@{'0' * 32}"),
            (GtoTool(), "model_version", "delay/v1.0.0"),
        ):
            if md5 in id:
                subprocess.run([real, "config", "--unset", "extensions.partialClone"], cwd=top, check=True)  # not DVC's
            ref = Ref("t", role, id, at=str(top))
            answer = answer_within(20, lambda tool=tool, ref=ref: tool.resolve(ref))
            assert answer
            answers[id] = answer.bucket
    assert os.listdir(ran) == []
    assert list(answers.values()) == ["accessible", "deleted", "accessible", "faulty", "accessible"]
    calls = seen.read_text().splitlines()
    assert len(calls) > 5 and all(call.startswith("/") and not call.startswith("/ ") for call in calls), calls


def test_the_users_own_repository_runs_its_filters_and_hooks(tmp_path):
    top, ran = tmp_path / "repo", tmp_path / "ran"
    _git(tmp_path, "init", "-q", "--bare", "remote")
    _git(tmp_path, "clone", "-q", "remote", "repo")
    ran.mkdir()
    (top / ".gitattributes").write_text("*.up filter=up\n")
    (tmp_path / "settings").write_text('[filter "up"]\n\tsmudge = tr a-z A-Z\n\tclean = cat\n\trequired = true\n')
    _git(top, "config", "include.path", str(tmp_path / "settings"))
    (top / "a.up").write_text("small")
    hook = top / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {ran}/pre-push\n")
    hook.chmod(0o755)
    _git(top, "add", ".")
    _git(top, "commit", "-qm", "x")
    assert git(top, "cat-file", "--filters", "HEAD:./a.up").stdout == b"SMALL"
    with runs_no_code_of_checkouts():
        assert git(top, "cat-file", "--filters", "HEAD:./a.up").stdout == b"small"
        assert git(top, "push", "-q", "origin", "HEAD").returncode
    assert git(top, "push", "-q", "origin", "HEAD").returncode == 0
    assert os.listdir(ran) == ["pre-push"]


@pytest.mark.parametrize("option", ["--output={}", "--outp={}", "-o{}", "--upload-pack=touch {}", "-S\n", ""])
def test_a_revision_is_never_an_option(tmp_path, option):
    dvc, written = DvcResource(repo=str(tmp_path / "data"), push=False), tmp_path / "written"
    dvc.init()
    (dvc.root / "x.txt").write_text("one")
    dvc.store("x.txt")
    rev, files = option.format(written), {*tmp_path.rglob("*")}
    with GtoResource(repo=dvc.repo).models() as models:
        for ask in (
            lambda: dvc.pointer("x.txt", rev=rev),
            lambda: dvc.data_version("x.txt", rev=rev),
            lambda: dvc.read_path("x.txt", rev=rev),
            lambda: dvc.revision("x.txt", rev=rev),
            lambda: history(dvc, "x.txt", rev=rev),
            lambda: version_hash(dvc, "x.txt", rev),
            lambda: _commit(dvc.repo, rev),
            lambda: models.register("m", rev=rev, version="v1.0.0", upstream=()),
            lambda: plain_revision(rev, error=DatasetError),
        ):
            with pytest.raises(
                (DatasetError, RegistryError), match=r"is not a git revision|is not a commit|has no branch"
            ):
                ask()
    assert {file.name for file in {*tmp_path.rglob("*")} - files} <= {"gto.lock"}
