"""Step 1, validate: raw records become valid or quarantined rows, checked by the rule table."""
