"""What a record of the raw catalog may hold: fields, values, label forms. Import and validation share it."""
