"""Pictures of an export: find them by name, bring them into the lake once."""
