"""TODO: what server holds."""
