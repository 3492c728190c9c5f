"""The catalog as training data: examples, labels, families, splits."""
