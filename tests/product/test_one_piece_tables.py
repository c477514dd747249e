"""Each small idea about tables, pictures and metadata has one home: what would be a second one is found here."""

import ast
import collections
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "plugins" / "dagster_mlops"
FILES = {path.relative_to(LIBRARY).as_posix(): path.read_text() for path in LIBRARY.rglob("*.py")}


@pytest.mark.parametrize(
    ("idea", "pattern", "homes"),
    [
        ("a hash of a table's content", r"hash_pandas_object|hash_rows|hash_array", set()),
        ("quotes around a name in SQL", r"""replace\(['"]"['"], ['"]""['"]\)""", {"core/tables.py"}),
        ("quotes around a text in SQL", r"""replace\(['"]'['"], ['"]''['"]\)""", {"core/tables.py"}),
        ("microseconds since 1970", r"datetime\(1970", {"core/timestamps.py"}),
        ("a picture in Markdown", r"data:image|savefig|matplotlib\.figure.*Figure\(", {"core/pictures.py"}),
        ("a table or link as metadata", r"TableRecord|MetadataValue\.(table|url)\(", {"core/metadata.py"}),
        # The others pack a repository's snapshot into a tag, a name and password into a header, a hash into a policy,
        # a statement into a signed envelope, a model's bytes into JSON, once more without the code that serves, a
        # text into a Secret, an array of numbers into JSON.
        (
            "base64",
            r"b64encode",
            {
                *("core/html.py", "core/pictures.py", "feast/rebuild/snapshot.py", "feast/checks/server.py"),
                *("promotion/history/envelope.py", "serving/runtime/outputs.py", "serving/golden/answers.py"),
                *("k8s/serving/manifests.py", "monitoring/windows/counts.py"),
            },
        ),
    ],
)
def test_an_idea_has_one_home(idea, pattern, homes):
    assert {name for name, text in FILES.items() if re.search(pattern, text)} == homes, idea


def test_a_metadata_key_that_two_modules_use_has_a_name():
    """A key is what users, sensors and lineage find a value by: written twice, it is changed once and lost."""
    tools = {path.name for path in LIBRARY.iterdir() if path.is_dir()} | {"dagster", "optuna", "reproduce"}
    homes = collections.defaultdict(set)
    for name, text in FILES.items():
        tree = ast.parse(text)
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                tool, slash, key = node.value.partition("/")
                if tool in tools and slash and key and " " not in key and "." not in key:
                    homes[node.value].add(name)
    assert {
        key: names for key, names in homes.items() if len(names) > 1 and key not in ("mlflow/format", "mlflow/sha256")
    } == {}
