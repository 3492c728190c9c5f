"""Contracts of all other packages: tables, taxonomy, rules, column mapping. Imports no other package of ours."""
