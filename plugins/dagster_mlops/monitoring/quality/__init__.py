"""Data quality: the values of one table as they came."""
