"""Historical features: retrieval and sources."""
