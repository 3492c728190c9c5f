"""``python -m jobs``: command line of all steps."""

if __name__ == "__main__":
    from jobs.startup.fast_exit import Leaving

    leaving = Leaving()
    from jobs.cli import main

    leaving.after(main)
