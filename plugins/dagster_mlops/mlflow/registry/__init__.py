"""TODO: what registry holds."""
