"""TODO: what runs holds."""
