"""Product content: pictures and texts as the model sees them, and their files."""
