"""Reads a Feast repository's definitions into JSON, as a file run in a process of its own: Feast is slow to import.

Usage: ``python -c "import runpy; runpy.run_path(FILE, run_name='__main__')" REPOSITORY OUTPUT``
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feast import FeatureView
    from feast.repo_contents import RepoContents


def describe(repo: Path) -> dict[str, Any]:
    """The feature views that `repo` defines, as Feast's own parser sees them."""
    from feast.repo_config import load_repo_config
    from feast.repo_operations import parse_repo

    config = load_repo_config(repo, repo / "feature_store.yaml")
    contents: RepoContents = parse_repo(repo)
    join_keys = {entity.name: entity.join_key for entity in contents.entities}
    views = [*contents.feature_views, *contents.stream_feature_views]
    return {"project": config.project, "views": [_view(view, join_keys) for view in views]}


def _view(view: "FeatureView", join_keys: dict[str, str]) -> dict[str, Any]:
    source = view.batch_source
    return {
        "name": view.name,
        "description": view.description,
        "owner": view.owner,
        "tags": dict(view.tags),
        "online": bool(view.online),
        "ttl_seconds": view.ttl.total_seconds() if view.ttl else None,
        # Feast gives a view without entities a dummy one, which is in no repository.
        "join_keys": [join_keys[name] for name in view.entities if name in join_keys and not name.startswith("__")],
        "features": [{"name": f.name, "dtype": str(f.dtype), "description": f.description} for f in view.features],
        "timestamp_field": source.timestamp_field if source else "",
        "source": str(getattr(source, "path", "") or getattr(source, "name", "")),
    }


if __name__ == "__main__":
    # The layout that Feast's parser expects: module names are relative to the working directory.
    sys.path.insert(0, str(Path.cwd()))
    Path(sys.argv[2]).write_text(json.dumps(describe(Path.cwd())))
