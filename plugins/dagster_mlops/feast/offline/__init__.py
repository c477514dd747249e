"""Historical features: retrieval, sources and content hashes."""
