"""TODO: what chain holds."""
