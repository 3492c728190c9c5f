"""Runs of several steps: a whole night, examples for training, republication, the estimate of a backfill."""
