"""The chain of records upstream of a thing: it is traced, completed from the event log, and shown."""
