"""Pictures of an export: find them by name and copy each one into the lake once."""
