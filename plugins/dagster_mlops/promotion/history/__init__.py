"""History of a model's aliases: signed entries in order, in the registry and in Dagster's event log."""
