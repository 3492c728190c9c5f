"""Readers of the input formats of an export's files."""
