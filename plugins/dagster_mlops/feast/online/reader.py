"""The feature store of online reads, kept from one read to the next until its definitions change."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import FeatureStore, pd
from dagster_mlops.feast.online.reading import OnlineRequest, online_features
from dagster_mlops.feast.repository.load import read_config, settings_text


class OnlineReader:
    """A feature store that is kept between reads, and the requests that were looked up in its registry.

    Args:
        repo: Folder with ``feature_store.yaml``.
        store: Function that opens the feature store.
    """

    def __init__(self, repo: str | Path, store: Callable[[], FeatureStore]) -> None:
        self._config = read_config(repo)
        self._state = self._current_state()
        self._store = store()
        self._requests: dict[tuple[Any, ...], OnlineRequest] = {}
        self._lock = threading.Lock()

    def is_current(self) -> bool:
        """True while the settings and the registry's file, if it is one, are those that the store was opened with."""
        return self._state == self._current_state()

    def _current_state(self) -> tuple[Any, ...]:
        # A process that is forked must not use the connections of its parent.
        return (os.getpid(), settings_text(self._config.path), *map(_file_state, self._config.registry_files))

    def features(
        self, entities: "pd.DataFrame", service: str, *, at: datetime | None, full_feature_names: bool
    ) -> "pd.DataFrame":
        """The features of a service as in :func:`~dagster_mlops.feast.online.reading.online_features`.

        Raises:
            FeatureError: As in `online_features` and :meth:`OnlineRequest.of_service`.
        """
        with self.request(service, full_feature_names=full_feature_names) as request:
            return online_features(request, entities, at=at)

    @contextmanager
    def request(self, service: str, *, full_feature_names: bool = False) -> Iterator[OnlineRequest]:
        """The request for a service, for reads in the block.

        A SQLite file is closed after it: it may be replaced, and its disk made read-only, before the next.

        Raises:
            FeatureError: As in :meth:`OnlineRequest.of_service`.
        """
        online = upstream.online_store(self._store)
        if type(online).__name__ != "SqliteOnlineStore":
            yield self._request(service, full_feature_names)
            return
        with self._lock:
            try:
                yield self._request(service, full_feature_names)
            finally:
                upstream.close_sqlite(online)

    def _request(self, service: str, full_feature_names: bool) -> OnlineRequest:
        """The request for a feature service, by the definitions that Feast's registry keeps in memory."""
        registry: Any = self._store.registry
        created = getattr(registry, "cached_registry_proto_created", None)
        key = (service, full_feature_names, created)
        if created is None or not registry.is_cache_valid():
            return OnlineRequest.of_service(self._store, service, full_feature_names=full_feature_names)
        if key not in self._requests:
            request = OnlineRequest.of_service(self._store, service, full_feature_names=full_feature_names)
            self._requests = {old: value for old, value in self._requests.items() if old[-1] == created}
            self._requests[key] = request
        return self._requests[key]


def _file_state(file: Path) -> tuple[int, int, bytes] | None:
    """A file's time, its size, and its first bytes, in which SQLite counts changes; None if it does not exist."""
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            return status.st_mtime_ns, status.st_size, opened.read(32)
    except FileNotFoundError:
        return None
