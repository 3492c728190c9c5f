"""Shared parts of all HTML pages: templates, number formats, thumbnails."""
