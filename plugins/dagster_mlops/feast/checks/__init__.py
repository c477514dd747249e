"""TODO: what checks holds."""
