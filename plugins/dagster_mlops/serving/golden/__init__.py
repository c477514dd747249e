"""Golden rows: what the registered model predicts for them, and the comparison with what is served."""
