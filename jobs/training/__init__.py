"""Training steps: the labelled set, training, pretraining, suspected labels."""
