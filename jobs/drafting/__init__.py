"""Draft a mapping, a taxonomy and a page from an export."""
