"""``python -m jobs``: the command line of every step.

Taking a process apart that has imported Spark, torch and Great Expectations takes Python two seconds, a twentieth of a
small night. The step is over by then and its files are closed, so the process is left at once, after all that was
registered to run at its end.
"""

import atexit
import os
import sys

if __name__ == "__main__":
    status = 1  # an exception that nobody caught: Python prints it before the exit functions run

    @atexit.register  # the first to be registered, before any other import, is the last to run
    def _leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    from jobs.cli import main

    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
