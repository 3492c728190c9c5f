"""``python -m jobs``: the command line of every step."""

from jobs.cli import main

if __name__ == "__main__":
    main()
