"""Alerts to people: one for each incident of an asset check, reminders until someone has acknowledged it, its end."""
