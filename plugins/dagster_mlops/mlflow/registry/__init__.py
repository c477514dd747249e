"""Registered models: versions, aliases and the candidate of an asset."""
