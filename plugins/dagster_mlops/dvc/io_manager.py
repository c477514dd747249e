"""Stores the value that an asset returns as a DVC dataset, and loads the version on Dagster's record."""

import inspect
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.asset_records import (
    code_facts,
    dagster_facts,
    latest_records,
    note_loaded,
    partitions_to_load,
    refs_read,
    upstream_reads,
)
from dagster_mlops.core.code_state import CodeState, code_state
from dagster_mlops.dvc.metadata_keys import REV
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import file_formats, pointers
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

PATH_KEY = "dvc/path"
"""Metadata key with the path of an asset's dataset, which has ``{partition}`` in it if the asset is partitioned."""
MD5 = "dvc/md5"
"""Input metadata keys that name the version to load: a git revision, or a content hash."""

RESTORE_KEY = "restore"
"""Key in an output's run config that names an older version to store as the newest, in place of a computed value."""
RESTORED = "dvc/restored"


class DvcIOManager(dg.IOManager):
    """Stores outputs as DVC datasets, and loads inputs by the content hash of their latest materialization.

    An output may be a pandas, pyarrow or polars frame, eager or lazy, bytes, a string, or the ``Path`` of a file or
    folder. It goes to ``<asset key>[/<partition>].parquet`` unless the asset's metadata names a ``dvc/path``. The
    annotation of an argument decides how an input is loaded: as a frame (partitions one below the other, in partition
    order), ``dict[str, frame]`` by partition, bytes, a string or a ``Path``.

    The metadata ``dvc/rev`` (a git revision) or ``dvc/md5`` of an input loads that version instead of the latest:
    ``ins={"flights": dg.AssetIn(metadata={"dvc/rev": "v1.0"})}``.
    """

    def __init__(self, dvc: DvcResource) -> None:
        self.dvc = dvc

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        # For steps, not for code locations.
        from dagster_mlops.dvc.history import restore
        from dagster_mlops.dvc.history.comparison import stored_metadata

        restored = (context.config or {}).get(RESTORE_KEY)
        if obj is None and not restored:
            raise DatasetError(
                f"{context.asset_key.to_user_string()} returned nothing. Return the data, or the path of a file."
            )
        partitions = context.asset_partition_keys if context.has_asset_partitions else []
        if len(partitions) > 1:
            raise DatasetError(
                f"{context.asset_key.to_user_string()} computes {len(partitions)} partitions in one run, but each is a "
                "separate dataset. Give the asset backfill_policy=dg.BackfillPolicy.multi_run(1)."
            )
        path = _path(context.asset_key, context.definition_metadata, *partitions)
        # The only public way from an IO manager to the executing asset's context.
        asset_context = dg.AssetExecutionContext.get()
        run_facts: dict[str, Any] = dagster_facts(asset_context, context.asset_key)
        with self.dvc.open(locked=False) as repo:
            scratch = pointers.scratch(repo)
        if restored:
            record = restore(self.dvc, path, restored, **run_facts)
            rows, columns = record.rows, file_formats.described(self.dvc.read_path(path, md5=record.md5), path)[1]
            context.add_output_metadata({RESTORED: restored})
        else:
            run_facts |= code_facts(
                _code_state(asset_context), refs_read(upstream_reads(asset_context, context.asset_key))
            )
            rows, columns = file_formats.write(obj, scratch, name=path)
            record = self.dvc.store(path, source=scratch, rows=rows, **run_facts)
        context.add_output_metadata(stored_metadata(self.dvc, asset_context, context.asset_key, record, rows, columns))
        # The materialization event is written after this method, and takes its version from the step's cache of data
        # versions. An IO manager has no public way to set it.
        context.step_context.set_data_version(context.asset_key, dg.DataVersion(record.md5))

    def load_input(self, context: dg.InputContext) -> Any:
        files = {partition: self._loaded(context, partition) for partition in partitions_to_load(context) or [""]}
        kind = context.dagster_type.typing_type
        name = next((file.name for file in files.values()), context.asset_key.to_user_string())
        if typing.get_origin(kind) in (dict, Mapping) or kind is dict:
            [_, kind] = typing.get_args(kind) or (str, Any)
            return {partition: file_formats.read([file], kind, name=file.name) for partition, file in files.items()}
        return file_formats.read(list(files.values()), kind, name=name)

    def _loaded(self, context: dg.InputContext, partition: str) -> Path:
        """A local file or folder with the version of the input, which the step's record will name."""
        metadata, name = context.definition_metadata or {}, context.asset_key.to_user_string()
        latest = latest_records(context.instance, context.asset_key, [partition] if partition else None)
        record = next((record for record in latest if isinstance(record, Dataset)), None)
        if REV in metadata or MD5 in metadata:
            rev, md5 = (getattr(metadata.get(name), "value", metadata.get(name)) for name in (REV, MD5))
            if rev and md5:
                raise DatasetError(f"The input {name} names both {REV} {rev!r} and {MD5} {md5!r}. Name one.")
            # Without a materialization here, the dataset may still exist at the path of the naming rule.
            path = record.path if record else _path(context.asset_key, metadata, partition)
            from dagster_mlops.dvc.history.versions import record_of_version

            record = record_of_version(self.dvc, path, str(rev or md5), md5 or self.dvc.data_version(path, rev=rev))
        if record is None:
            raise DatasetError(
                f"{name}{f' partition {partition}' if partition else ''} has no dataset on "
                "Dagster's record. Materialize it (or observe it, if someone else versions it) before loading it."
            )
        # Other records of its materialization, such as a training set, belong to the version that was loaded.
        note_loaded(context, *(latest if record.ref in [other.ref for other in latest] else [record]))
        return self.dvc.read_path(record.path, md5=record.md5)


@dg.io_manager(
    required_resource_keys={"dvc"},
    output_config_schema={
        RESTORE_KEY: dg.Field(
            str,
            is_required=False,
            description="A git revision, a content hash or 'previous': store that version as the newest.",
        )
    },
)
def dvc_io_manager(context: dg.InitResourceContext) -> DvcIOManager:
    """The :class:`DvcIOManager` of the resource ``dvc``, which is the only one to bind.

    @dg.asset(io_manager_def=dvc_io_manager)
    def flights() -> pd.DataFrame: ...

    dg.Definitions(assets=[flights], resources={"dvc": DvcResource(repo="/data/flights")})
    """
    return DvcIOManager(context.resources.dvc)


def _path(key: dg.AssetKey, metadata: Mapping[str, Any], partition: str = "") -> str:
    template = getattr(metadata.get(PATH_KEY), "value", metadata.get(PATH_KEY))
    template = template or "/".join(key.path) + ("/{partition}.parquet" if partition else ".parquet")
    if partition and "{partition}" not in template:
        raise DatasetError(
            f"{key.to_user_string()} is partitioned, but its {PATH_KEY} {template!r} lacks '{{partition}}'. Add it."
        )
    return template.replace("{partition}", quote(partition, safe=" :,=+@"))


def _code_state(context: dg.AssetExecutionContext) -> CodeState:
    """State of the code that defines the asset; of the working directory where a library's factory defined it."""
    function = getattr(context.op_def.compute_fn, "decorated_fn", None)
    file = inspect.getsourcefile(inspect.unwrap(function)) if function else None
    state = code_state(Path(file)) if file else CodeState()
    return state if state.commit else code_state(Path(os.getcwd()))
