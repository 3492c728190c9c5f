"""Parts that all HTML pages share: templates, number formats, example pictures."""
