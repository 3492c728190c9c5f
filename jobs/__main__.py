"""``python -m jobs``: the command line of every step."""

import gc

from jobs.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        gc.freeze()  # the process ends: a last search for garbage in all that was imported takes seconds
