"""Pictures from the web: addresses that may be asked, downloads, and the record of what was downloaded."""
