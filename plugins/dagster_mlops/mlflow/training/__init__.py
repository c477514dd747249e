"""TODO: what training holds."""
