"""Rules that import and validation share for a record of the raw catalog: its fields, values and label forms."""
