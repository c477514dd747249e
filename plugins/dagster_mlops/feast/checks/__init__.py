"""Asset checks on training sets, freshness, parity and the feature server."""
