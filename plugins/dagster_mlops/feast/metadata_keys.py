"""Metadata keys that several modules of this folder write or read: users see them on the asset's page."""

FEATURES = "feast/features"
KEPT_NEWER = "feast/kept_newer"
LAST_EVENT = "feast/last_event"
NULL_SHARES = "feast/null_shares"
ONLINE_WRITES = "feast/online_writes"
