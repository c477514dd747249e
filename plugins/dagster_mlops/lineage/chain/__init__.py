"""The chain of records upstream of a thing: how it is walked, who answers, how it is shown."""
