"""Input formats: how the rows of an export's files are read."""
