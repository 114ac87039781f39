"""Measurements of the whole: each script prints a table and writes every sample as JSON."""
