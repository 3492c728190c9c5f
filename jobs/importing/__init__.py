"""Step 0, import: a shop's export becomes a day of the raw catalog."""
