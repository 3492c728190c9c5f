"""Files of an export: which ones hold records, and how packed ones are unpacked."""
