"""Has DVC itself refuse the list of a folder's files that is not what its hash says, or names files elsewhere."""

from functools import cache
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.inside import plain_name
from dagster_mlops.dvc.store.contents import Content
from dagster_mlops.errors import DatasetError


@cache
def guard_listings() -> None:
    """Check each list that DVC loads in this process, before it fetches or writes a file by the names in it.

    DVC joins a name such as ``../../.git/hooks/post-checkout`` with the folder, and writes there.
    https://github.com/treeverse/dvc/issues/11101
    """
    tree, file_md5 = extra("dvc_data.hashfile.tree").Tree, extra("dvc_data.hashfile.hash").file_md5
    load = tree.load

    def checked_load(odb: Any, hash_info: Any, hash_name: str | None = None) -> Any:
        stored = odb.get(Content(hash_info.value).md5)
        if f"{file_md5(stored.path, stored.fs, name=odb.hash_name)}.dir" != hash_info.value:
            raise DatasetError(f"{stored.path} holds other bytes than its name says.")
        listing = load(odb, hash_info, hash_name)
        for parts, _, file in listing:
            plain_name("/".join(parts), error=DatasetError)
            Content(file.value)
        return listing

    tree.load = staticmethod(checked_load)
