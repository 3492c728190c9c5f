"""The model card: tables and plots of what a model is worth."""
