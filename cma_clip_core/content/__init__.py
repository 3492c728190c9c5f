"""Product content: pictures and texts as the model sees them, and the files that they come from."""
