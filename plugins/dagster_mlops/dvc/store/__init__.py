"""TODO: what store holds."""
