"""``python -m jobs.step_server_main SOCKET``: a step server (`jobs.startup.step_server`) for our command line."""

from jobs.startup.fast_exit import FastExit

fast_exit = FastExit()  # before any other import, so that its exit function runs last

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

from jobs.startup.step_server import serve  # noqa: E402


def _load_main() -> Callable[[], object]:
    """Import and return the command line. Each fork does this, so every step runs the present code."""
    from jobs.cli import main

    return main


if __name__ == "__main__":
    serve(Path(sys.argv[1]), fast_exit, _load_main)
