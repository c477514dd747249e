"""A feature repository: how it is loaded, described and applied."""
