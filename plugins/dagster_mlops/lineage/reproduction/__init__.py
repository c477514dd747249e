"""TODO: what reproduction holds."""
