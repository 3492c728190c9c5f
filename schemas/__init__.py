"""The contracts every other package builds on: tables, taxonomy, rules, column mapping. Imports nothing of ours."""
