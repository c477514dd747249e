"""A training set once more, from the snapshot that its record names."""
