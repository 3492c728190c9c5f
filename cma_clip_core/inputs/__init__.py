"""Model inputs: batches, prefetch, devices, processes."""
