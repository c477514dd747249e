"""Labels that arrive later, joined to the predictions of a log."""
