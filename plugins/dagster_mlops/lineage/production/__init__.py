"""TODO: what production holds."""
