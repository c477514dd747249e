"""Git commits, the last links of a chain."""

import re
from pathlib import Path

from dagster_mlops.core.git import LATE, git
from dagster_mlops.provenance import Accessible, Answer, Commit, Deleted, Faulty, Inaccessible, Ref
from dagster_mlops.tools import time_limit

_TIMEOUT = 5.0
_FORMAT = "--format=%H%x00%aI%x00%an%x00%ae%x00%s"


class GitTool:
    """Answers for the commits of git repositories.

    >>> GitTool().resolve(Ref("git", "commit", "1f0c2ab", at="/no/such/folder")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        if ref.role != Commit.role:
            return Faulty(f"Git keeps commits, not a {ref.role}.")
        if not re.fullmatch(r"[0-9a-f]{7,64}", ref.id):
            return Faulty(f"{ref.id!r} is not a commit hash.")
        if not ref.at or not Path(ref.at).is_dir():
            return Inaccessible(f"the folder of the git repository is not there: {ref.at or 'not recorded'}.")
        # A partial clone must not go to the network for an answer.
        local = {"GIT_NO_LAZY_FETCH": "1"}
        folder, revision, timeout = Path(ref.at), f"{ref.id}^{{commit}}", time_limit(_TIMEOUT)
        inside = git(folder, "rev-parse", "--is-shallow-repository", env=local, timeout=timeout)
        if inside.returncode:
            return Inaccessible(f"git cannot read {ref.at}: {inside.stderr.decode(errors='replace').strip()}.")
        commit = git(folder, "show", "--no-patch", "--no-show-signature", _FORMAT, revision, env=local, timeout=timeout)
        if commit.returncode == LATE:
            return Inaccessible(f"{commit.stderr.decode()} in {ref.at}.")
        if commit.returncode == 0:
            sha, authored, author, address, subject = commit.stdout.decode(errors="replace").rstrip("\n").split("\0")
            facts = {"address": address}
            return Accessible(
                Commit(sha=sha, repo=ref.at, authored=authored, author=author, subject=subject, tool_facts=facts)
            )
        if inside.stdout.strip() == b"true":
            return Inaccessible(f"{ref.at} is a shallow clone without this commit. Run: git fetch --unshallow")
        return Deleted(f"commit {ref.id[:12]} is not in {ref.at} (rewritten, or never pushed from where it was made).")
