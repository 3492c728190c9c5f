"""Upkeep of the lake: inventory, retention, repair, and commands that list, read and roll back the published tables."""
