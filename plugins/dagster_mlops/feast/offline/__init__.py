"""TODO: what offline holds."""
