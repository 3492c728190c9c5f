"""The check of docs and docstrings in `make lint`: `pytest tests/test_prose.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "check_prose.py"
spec = importlib.util.spec_from_file_location("check_prose", SCRIPT)
assert spec is not None
assert spec.loader is not None
check_prose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_prose)

LONG = " ".join(["word"] * 31)


@pytest.mark.parametrize(
    ("name", "text", "faults"),
    [
        ("page.md", f"Short sentence. {LONG}.\n", ["page.md:1: 31 words"]),
        ("page.md", f"# Title\n\n* item\n* {LONG}\n", ["page.md:4: 31 words"]),
        ("page.md", f"```\n{LONG}\n```\n", []),
        ("page.md", f"| `{LONG}` | {' '.join(['word'] * 20)} | {' '.join(['word'] * 20)} |\n", []),
        ("page.md", "All are kept but for one.\n", ["page.md:1: 'but for', say 'except'"]),
        ("code.py", '"""What this does."""\n', ["code.py:1: docstring begins with 'What'"]),
        ("code.py", 'def f():\n    """Return 1."""\n', []),
        ("code.py", f"# {LONG}\nx = 1\n", ["code.py:1: 31 words"]),
        ("code.py", f'x = "{LONG}"  # a string is no prose\n', []),
    ],
)
def test_faults_name_their_line(name: str, text: str, faults: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    reported = [fault.removeprefix(f"{tmp_path}/") for fault in check_prose.faults_of(path)]
    assert len(reported) == len(faults)
    assert all(one.startswith(start) for one, start in zip(reported, faults, strict=True)), reported


def test_few_sentences_may_be_longer() -> None:
    assert len(check_prose.LONGER) <= 10
