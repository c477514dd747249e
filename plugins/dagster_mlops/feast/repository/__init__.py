"""TODO: what repository holds."""
