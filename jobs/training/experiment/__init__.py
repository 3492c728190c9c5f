"""The comparison of the paper's methods on one's own catalog."""
