"""The model: encoders, attention, classifiers, tokenizer."""
