"""Alarms that a detector would have raised over a history, and when it would have caught incidents."""
