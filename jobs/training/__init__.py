"""The training steps: the labelled set, pretraining, training, and suspected labels."""
