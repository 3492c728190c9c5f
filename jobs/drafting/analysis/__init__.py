"""Analysis of a sample: what its columns are, which attributes its labels show, and what they are enough for."""
