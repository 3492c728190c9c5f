"""``python -m jobs.step_server_main SOCKET``: the step server (`jobs.startup.step_server`) with this command line."""

from jobs.startup.fast_exit import Leaving

leaving = Leaving()  # before any other import, so that what it registers is the last to run

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

from jobs.startup.step_server import serve  # noqa: E402


def _main() -> Callable[[], object]:
    """Import the command line: in each fork, so that a step has our modules as they are when it starts."""
    from jobs.cli import main

    return main


if __name__ == "__main__":
    serve(Path(sys.argv[1]), leaving, _main)
