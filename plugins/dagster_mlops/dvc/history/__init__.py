"""TODO: what history holds."""
