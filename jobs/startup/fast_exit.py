"""The end of a process that runs a step.

Taking a process apart that has imported Spark, torch and Great Expectations takes Python two seconds, a twentieth of a
small night. The step is over by then and its files are closed, so the process is left at once, after all that was
registered to run at its end.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


class Leaving:
    """Made before any other import, so that what it registers is the last to run."""

    def __init__(self) -> None:
        self._status = 1  # an exception that nobody caught: Python prints it before the exit functions run
        atexit.register(self._leave)

    def after(self, main: Callable[[], object]) -> None:
        """Run `main`; its end, by whatever way, is the process's exit status."""
        try:
            main()
            self._status = 0
        except SystemExit as end:
            self._status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise

    def _leave(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._status)
