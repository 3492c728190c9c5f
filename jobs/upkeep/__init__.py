"""Upkeep of the lake: inventory, retention, repair, and the published tables as people list them."""
