"""Step 0, import: turn a shop's export into a day of the raw catalog."""
