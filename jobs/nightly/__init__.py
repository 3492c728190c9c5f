"""Steps 2 to 5 of a night: plan, preprocess, tag, publish."""
