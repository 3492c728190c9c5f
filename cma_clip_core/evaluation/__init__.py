"""Evaluation: predictions, metrics with intervals, thresholds, label errors."""
