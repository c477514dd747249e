"""The rules of a promotion, one file for each kind of evidence: each is data that judges a case, in a row."""
