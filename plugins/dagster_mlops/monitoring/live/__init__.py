"""The alarm of a deployment: its prediction log, window by window, in a sensor."""
