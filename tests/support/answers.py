"""A tool without anything behind it, for recipes and traces of records."""

from pathlib import Path

from dagster_mlops.provenance import Answer, Ref


class Answers:
    """A tool that gives these answers, and these files of a run."""

    rerun = Path("rerun.py")

    def __init__(self, answer: Answer, files: dict[str, bytes] | None = None) -> None:
        self.answer, self.kept = answer, files or {}

    def resolve(self, ref: Ref) -> Answer:
        return self.answer

    def files(self, ref: Ref, folder: str) -> dict[str, bytes]:
        return self.kept

    def find_model(self, ref: Ref) -> None:
        return None

    def fetch_model(self, ref: Ref, folder: Path) -> Path:
        raise AssertionError("nothing is run")
