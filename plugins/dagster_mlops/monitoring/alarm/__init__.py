"""An alarm of a model: calibrated by a history, kept as an asset, loaded by whoever watches."""
