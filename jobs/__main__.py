"""``python -m jobs``: the command line of every step."""

if __name__ == "__main__":
    from jobs.leaving import Leaving

    leaving = Leaving()
    from jobs.cli import main

    leaving.after(main)
