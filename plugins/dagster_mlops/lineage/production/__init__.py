"""The deployments of an instance, and what is behind each of them."""
