"""Fast exit of a process that has run a step.

The shutdown of an interpreter that has imported Spark, torch and Great Expectations takes two seconds, a twentieth of a
small night. The step is finished by then and its files are closed. So the process ends without it, right after the
registered exit functions.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


class FastExit:
    """An exit function that ends the process at once. Create it before any other import, so that it runs last."""

    def __init__(self) -> None:
        self._status = 1  # for an uncaught exception, which Python prints before the exit functions run
        atexit.register(self._exit)

    def run(self, main: Callable[[], object]) -> None:
        """Run `main`, and record the exit status of the process, however `main` ends."""
        try:
            main()
            self._status = 0
        except SystemExit as end:
            self._status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise

    def _exit(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._status)
