"""Step 6, report: one HTML page that says how the night went."""
