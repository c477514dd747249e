"""The reference code location: will this flight arrive more than 15 minutes late, asked at scheduled departure."""
