"""Git keeps the contract of a tool."""

import subprocess

import pytest

from dagster_mlops.git import GitTool
from dagster_mlops.provenance import Ref
from dagster_mlops.testing import check_tool


def test_git_answers_as_a_tool_has_to(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    present = Ref("git", "commit", git("rev-parse", "HEAD"), at=str(tmp_path))
    absent = Ref("git", "commit", "0123456789" * 4, at=str(tmp_path))
    check_tool(GitTool(), name="git", present=present, absent=absent, seconds=20)
    with pytest.raises(AssertionError, match=r"has the tool 'git' instead of 'hg'"):
        check_tool(GitTool(), name="hg", present=present, absent=absent)
    with pytest.raises(AssertionError, match="is deleted: commit 0123456789"):
        check_tool(GitTool(), name="git", present=absent, absent=absent)
