"""Background import of slow modules (Great Expectations, torch), while Python waits for Spark's JVM."""

from __future__ import annotations

import importlib
import sys
import threading


def preload(*modules: str) -> None:
    """Import modules in the background. An ordinary import of one of them waits until it is loaded."""

    def work() -> None:
        # Otherwise each of Spark's thousands of small answers would wait a full switch interval for the interpreter.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(interval / 10)
        try:
            for module in modules:
                importlib.import_module(module)
        finally:
            sys.setswitchinterval(interval)

    threading.Thread(target=work, daemon=True).start()
