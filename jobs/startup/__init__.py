"""Faster starts of steps."""
