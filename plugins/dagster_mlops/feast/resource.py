"""The connection to a Feast repository."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, PrivateAttr

from dagster_mlops.core.extras import extra
from dagster_mlops.core.private_files import touch_private
from dagster_mlops.core.resources import ToolResource
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pd
from dagster_mlops.feast.offline import retrieval
from dagster_mlops.feast.repository import apply_guard, registry
from dagster_mlops.feast.repository.load import content_key, has_definitions, read_config, run_feast, without_secrets

if TYPE_CHECKING:
    from dagster_mlops.feast.online.reader import OnlineReader

_COMPUTE = "dagster_mlops.feast.engine.StoredFeaturesEngine"


class FeastResource(ToolResource):
    """A Feast repository: a folder with ``feature_store.yaml`` and Feast's own definitions.

    Returns Feast's own ``FeatureStore``, and adds an ``apply`` that does nothing when nothing changed, and dataframes
    that keep every row and the requested order of features.

        feast = FeastResource(repo="feature_repo")
        feast.apply()
        feast.store().get_feature_service("arrival_delay")              # Feast's own
        feast.historical_features(flights, "arrival_delay")             # flights + features, row for row
        feast.online_features(flights.head(3), "arrival_delay")         # the same columns, from the online store
    """

    repo: str = Field(description="Folder that holds feature_store.yaml and the feature definitions.")
    allow_dask: bool = Field(
        default=False,
        description="Allow Feast's default offline store (dask or file), which loses rows and runs out of memory.",
    )
    offline_store: dict[str, Any] | None = Field(
        default=None,
        description="Offline store to use instead of the one in feature_store.yaml, e.g. "
        "{type: dagster_mlops.feast.offline_store.AsofOfflineStore}.",
    )
    timeout: float = Field(default=600, description="Maximum seconds for `apply` and for waiting for another process.")
    _reader: Any = PrivateAttr(default=None)  # the store and the requests of earlier online reads

    def store(self) -> "FeatureStore":
        """Feast's own feature store for this repository.

        Raises:
            FeatureError: ``feature_store.yaml`` has a setting that would fail later; the message has the fix.
        """
        from dagster_mlops.feast.online import stores  # for steps, not for code locations

        config = read_config(self.repo)
        file = config.path / "feature_store.yaml"
        if config.registry_type == "file":
            dg.get_dagster_logger().warning(
                f"{file} uses a file registry, which loses concurrent updates silently. Prefer:\n"
                "registry:\n    registry_type: sql\n    path: sqlite:////absolute/path/registry.db"
            )
        elif config.registry_file and not config.registry_file.is_absolute():
            raise FeatureError(
                f"{file} has the registry {config.registry_path!r}, which is relative to the working directory of each "
                "process. Write an absolute path (four slashes: sqlite:////data/registry.db), or one from a variable."
            )
        if config.registry_file:
            config.registry_file.parent.mkdir(parents=True, exist_ok=True)
            if config.registry_type == "sql":
                touch_private(config.registry_file)  # as SQLite would create it, everyone may read it
        module = extra("feast.repo_config", extra="feast")
        try:
            settings = module.load_repo_config(config.path, file)
            if self.offline_store:
                file_settings = settings.model_dump(by_alias=True, exclude_unset=True, exclude={"repo_path"})
                settings = type(settings)(**{**file_settings, "offline_store": self.offline_store})
                settings.repo_path = config.path
        except (ValueError, module.FeastConfigError, extra("feast.errors").FeastError) as error:
            # Not as the cause: Feast's error quotes settings, including passwords.
            raise FeatureError(f"Feast does not accept {file}: {without_secrets(config.path, str(error))}") from None
        stores.bound_waiting(settings.online_store)
        engine = settings.batch_engine_config
        if (engine if isinstance(engine, str) else engine["type"]) == "local":
            settings.batch_engine_config = {**(engine if isinstance(engine, dict) else {}), "type": _COMPUTE}
        return extra("feast").FeatureStore(repo_path=str(config.path), config=settings)

    def apply(self, *, force: bool = False) -> bool:
        """Run ``feast apply`` unless the registry already has exactly these definitions.

        Processes take turns. Feast runs in a process of its own, so that edited definitions are read anew. Without
        definitions beside ``feature_store.yaml`` nothing is applied, because `feast apply` would empty the registry.

        Returns:
            True if something was applied.

        Raises:
            FeatureError: Feast refuses the definitions or took longer than `timeout`; or someone else applied other
                definitions, and this repository is not known to be newer. With `force` they are replaced.
        """
        return self._apply(self.store(), force=force)

    def applied_store(self) -> "FeatureStore":
        """Feast's own feature store, after :meth:`apply`.

        Raises:
            FeatureError: As in `store` and `apply`.
        """
        store = self.store()
        self._apply(store)
        return store

    def _apply(self, store: FeatureStore, *, force: bool = False) -> bool:
        from dagster_mlops.feast.online.materialization import alone, make_missing_tables

        config = read_config(self.repo)
        path = config.path
        if not has_definitions(path):
            return False
        key = content_key(path)
        registry.create_tables(store)
        if not force and apply_guard.is_applied(store, path, key):
            return False
        # Beside a registry file, because other checkouts share it.
        with alone(store, config.registry_file.parent if config.registry_file else path, "apply", self.timeout):
            if not force and apply_guard.is_applied(store, path, key):
                return False
            # Before Feast, which may create them without a warning that values were lost.
            make_missing_tables(store)
            run_feast("apply", path, timeout=self.timeout, failure=f"`feast apply` failed in {path}")
            store.refresh_registry()
            apply_guard.note(store, path, key)
            self._reader = None
        return True

    def historical_features(
        self,
        entity_df: "pd.DataFrame",
        feature_service: str,
        *,
        timestamp_column: str = "event_timestamp",
        full_feature_names: bool = False,
    ) -> "pd.DataFrame":
        """`entity_df`, row by row and in order, with each feature as it was known at the row's timestamp.

        A feature is the latest value at or before the timestamp within its view's ttl. Extra columns are kept, the
        index is reset, and numbers are float64 so that a missing value does not change a column's type. With
        `full_feature_names`, features are named ``view__feature``, so that two views may have a feature of one name.

        Raises:
            FeatureError: A column is missing or collides with a feature, two features have one name, the offline store
                lost rows, or it is Feast's default one, which loses rows.
        """
        used = self.offline_store or {"type": read_config(self.repo).offline_store}
        if used.get("type") in ("dask", "file") and not self.allow_dask:
            raise FeatureError(
                f"{self.repo} uses Feast's default offline store ({used['type']}), which silently drops entity rows "
                "and runs out of memory at some 5,000 of them. Replace `offline_store` in feature_store.yaml with:\n"
                f"offline_store:\n    type: {retrieval.ENGINE}\nor leave the file unchanged and pass "
                f'FeastResource(offline_store={{"type": "{retrieval.ENGINE}"}}), or allow_dask=True.'
            )
        return retrieval.historical_features(
            self.store(),
            entity_df,
            feature_service,
            timestamp_column=timestamp_column,
            full_feature_names=full_feature_names,
        )

    def online_features(
        self,
        entity_rows: "pd.DataFrame",
        feature_service: str,
        *,
        at: datetime | None = None,
        full_feature_names: bool = False,
    ) -> "pd.DataFrame":
        """`entity_rows`, row by row and in order, with the features served now; columns as in `historical_features`.

        Feast's online stores also return values older than their view's ttl. With `at` (a time with a time zone), those
        that had expired by then are missing, as they are offline. The store and the definitions are kept for the next
        read until ``feature_store.yaml`` or the registry's file changes; those of a registry on a server for
        ``cache_ttl_seconds``, as Feast keeps them.

        Raises:
            FeatureError: A join key is missing, two features have one name, or `at` has no time zone.
        """
        return self.online_reader().features(entity_rows, feature_service, at=at, full_feature_names=full_feature_names)

    def online_reader(self) -> "OnlineReader":
        """The feature store of `online_features`, as it is kept for the next read."""
        from dagster_mlops.feast.online.reader import OnlineReader

        reader = self._reader
        if reader is None or not reader.is_current():
            reader = self._reader = OnlineReader(self.repo, self.store)
        return reader
