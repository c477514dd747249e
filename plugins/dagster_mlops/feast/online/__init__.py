"""TODO: what online holds."""
