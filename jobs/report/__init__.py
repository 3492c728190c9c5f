"""Step 6, report: an HTML page about the night, and the list of all nights."""
