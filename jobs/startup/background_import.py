"""Modules that take seconds to import (Great Expectations, torch), loaded while Spark's JVM works and Python waits for it."""

from __future__ import annotations

import importlib
import sys
import threading


def preload(*modules: str) -> None:
    """Import modules in the background; who needs one before it is loaded, waits for it as ever."""

    def work() -> None:
        # Each of Spark's thousands of small answers would wait this long for the interpreter.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(interval / 10)
        try:
            for module in modules:
                importlib.import_module(module)
        finally:
            sys.setswitchinterval(interval)

    threading.Thread(target=work, daemon=True).start()
