"""A real disk that is soon full: a file system of a few kilobytes, seen by one command and what it starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def command(folder: Path, size: int, within: str) -> list[str]:
    """Return a command that runs `within` by a shell that has a disk of `size` bytes, empty, at `folder`.

    The test is skipped where no file system can be mounted.
    """
    mount = f"mount -t tmpfs -o size={size} none {folder} && "
    shell = ["unshare", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*shell, mount + "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    return [*shell, f"{mount}{{ {within}; }}"]
