"""Registered models: versions, aliases, notes and evaluations."""
