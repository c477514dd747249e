"""The verdict on a canary or a shadow deployment: go, back or not yet, from counts and values alone."""
