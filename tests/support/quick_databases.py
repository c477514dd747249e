"""Dagster's and MLflow's SQLite files at a fraction of their usual time, with the same tables and rows.

Dagster makes a database for each instance and for each run: forty statements, and fifty files of revisions that Alembic
loads each time, 0.2 s together. MLflow's takes 0.6 s. Here each starts as a copy of one that the tool itself has made.
And nobody waits for the disk: a commit outlives the death of its process, which is what the tests try, but not that of
the machine. Nobody reads what steps print, either: Dagster keeps it with four more processes for each step.
"""

import contextlib
import functools
import logging
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from dagster._core.instance import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Engine, create_engine, event, inspect

RUN = "a run"  # any name that is not taken
PLACES = {
    "runs": "history/runs.db", "index": "history/runs/index.db", "run": f"history/runs/{RUN}.db",
    "schedules": "schedules/schedules.db",
}  # fmt: skip
NO_OUTPUT = ConfigurableClassData("dagster._core.storage.noop_compute_log_manager", "NoOpComputeLogManager", "{}\n")
_INSTALLED = "dagster_mlops_quick_databases"


def install() -> None:
    """From now on, in this process and its forks."""
    if hasattr(ScriptDirectory, _INSTALLED):  # by the process that this one is a fork of
        return
    setattr(ScriptDirectory, _INSTALLED, True)
    revisions: dict[str, ScriptDirectory] = {}
    from_config: Callable[..., ScriptDirectory] = ScriptDirectory.from_config

    def from_memory(config: Any) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in revisions:
            revisions[place] = from_config(config)
        return revisions[place]

    ScriptDirectory.from_config = from_memory
    event.listen(Engine, "connect", _do_not_wait_for_the_disk)
    _compile_statements_once()
    config_defaults = InstanceRef.config_defaults
    InstanceRef.config_defaults = staticmethod(
        lambda base_dir: {**config_defaults(base_dir), "compute_logs": NO_OUTPUT}
    )
    templates = _templates()
    _start_with(SqliteRunStorage, "from_local", templates["runs"], lambda folder: f"{folder}/runs.db")
    _start_with(SqliteScheduleStorage, "from_local", templates["schedules"], lambda folder: f"{folder}/schedules.db")
    event_init, run_init = SqliteEventLogStorage.__init__, SqliteEventLogStorage._initdb

    @functools.wraps(event_init)
    def with_index(self: Any, base_dir: str, *arguments: Any, **options: Any) -> None:
        _place(templates["index"], f"{base_dir}/index.db")
        event_init(self, base_dir, *arguments, **options)

    @functools.wraps(run_init)
    def with_tables(self: Any, engine: Engine, *arguments: Any, **options: Any) -> None:
        if not _place(templates["run"], str(engine.url.database)):
            run_init(self, engine, *arguments, **options)

    SqliteEventLogStorage.__init__ = with_index
    SqliteEventLogStorage._initdb = with_tables
    install_mlflow()


def install_mlflow() -> None:
    """The same for MLflow, once it is imported: its import would cost more than this spares."""
    mlflow: Any = sys.modules.get("mlflow.store.db.utils")
    if mlflow and not hasattr(mlflow._initialize_tables, "__wrapped__"):
        mlflow._initialize_tables = _from_template(mlflow._initialize_tables)


def _from_template(initialize: Callable[[Engine], None]) -> Callable[[Engine], None]:
    """MLflow's function that makes the tables of a database, as a copy of what it has made once."""
    template = sqlite3.connect(":memory:", check_same_thread=False)
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/mlflow.db")
        logging.disable(logging.INFO)
        initialize(engine)
        logging.disable(logging.NOTSET)
        engine.dispose()
        with contextlib.closing(sqlite3.connect(f"{folder}/mlflow.db")) as made:
            made.backup(template)
    turn = threading.Lock()

    @functools.wraps(initialize)
    def from_template(engine: Engine) -> None:
        if engine.dialect.name != "sqlite" or inspect(engine).get_table_names():
            initialize(engine)
            return
        connection: Any = engine.raw_connection()
        with turn, contextlib.closing(connection):
            template.backup(connection.driver_connection)

    return from_template


def _templates() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder, DagsterInstance.local_temp(folder) as instance:
        storage: Any = instance.event_log_storage
        with storage.run_connection(RUN):
            pass
        return {kind: (Path(folder) / place).read_bytes() for kind, place in PLACES.items()}


def _start_with(storage: Any, maker: str, content: bytes, place: Callable[[str], str]) -> None:
    make = getattr(storage, maker).__func__

    @functools.wraps(make)
    def from_template(cls: type, base_dir: str, *arguments: Any, **options: Any) -> Any:
        _place(content, place(base_dir))
        return make(cls, base_dir, *arguments, **options)

    setattr(storage, maker, classmethod(from_template))


def _place(content: bytes, file: str) -> bool:
    """Write a file whole, unless there is one. Whether it was written."""
    if os.path.exists(file):
        return False
    os.makedirs(os.path.dirname(file), exist_ok=True)
    mine = f"{file}.{os.getpid()}-{threading.get_ident()}"
    Path(mine).write_bytes(content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(mine, file)
            return True
        return False
    finally:
        os.unlink(mine)


def _compile_statements_once() -> None:
    """Each engine would compile the statements of its tool again: a third of what a new MLflow client takes."""
    with create_engine("sqlite://", query_cache_size=5000).connect() as connection:  # which sets the dialect up
        dialect: Any = connection.engine.dialect
        statements = connection.engine._compiled_cache
    options = ("_json_serializer", "_json_deserializer", "_on_connect_isolation_level", "native_datetime")

    def share(cls: type, engine: Any) -> None:
        given = vars(engine.dialect)
        if cls is type(dialect) and all(given.get(name) == vars(dialect).get(name) for name in options):
            engine.dialect = engine.pool._dialect = dialect  # which is part of a statement's key
            engine._compiled_cache = statements

    type(dialect).engine_created = classmethod(share)


def _do_not_wait_for_the_disk(connection: Any, _: Any) -> None:
    if type(connection).__module__ == "sqlite3":
        connection.execute("PRAGMA synchronous=OFF")
