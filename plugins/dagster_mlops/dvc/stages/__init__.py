"""TODO: what stages holds."""
