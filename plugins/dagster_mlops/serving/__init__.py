"""TODO: what serving holds."""
