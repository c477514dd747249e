"""TODO: what rebuild holds."""
