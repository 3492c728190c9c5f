"""``python -m jobs.step_server_main SOCKET``: the step server (`jobs.startup.step_server`) with this command line."""

from jobs.startup.fast_exit import FastExit

fast_exit = FastExit()  # before any other import, so that its exit function runs last

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

from jobs.startup.step_server import serve  # noqa: E402


def _main() -> Callable[[], object]:
    """Import the command line in each fork, so that a step gets this project's modules as they are when it starts."""
    from jobs.cli import main

    return main


if __name__ == "__main__":
    serve(Path(sys.argv[1]), fast_exit, _main)
