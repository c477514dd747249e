"""TODO: what models holds."""
