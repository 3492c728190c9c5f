"""One module for each step of the pipeline, each a command: ``python -m jobs --help``."""
