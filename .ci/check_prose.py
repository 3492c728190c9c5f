"""Check the English of docs and docstrings: length of sentences, form of docstrings, phrases that readers stumble over.

Run by `make lint`. Exit status 1 lists each fault with its file and line.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_WORDS = 30  # a sentence, in docs and docstrings

# A sentence that may be longer, by its first words. At most ten.
LONGER: tuple[str, ...] = ()

# How a docstring does not begin: with an object, a question or a condition instead of a noun phrase or a verb.
BAD_OPENINGS = re.compile(
    r"(?:What|Which|Whether|Who|Whom|Whose|How|Where|When|Why|Of|For|From|That|If|As|By|With|Into)\b(?! many\b)"
)

# Phrases with a plain equivalent.
BAD_PHRASES = {
    re.compile(r"\bbe it\b", re.I): "even if",
    re.compile(r"\bstead\b", re.I): "instead of",
    re.compile(r"\bbut for\b", re.I): "except",
    re.compile(r"\b(?:is|are|was|were) told\b", re.I): "reported",
    re.compile(r"\banew\b", re.I): "again",
    re.compile(r"\btold apart\b", re.I): "distinguished",
    re.compile(r"\bgone on with\b", re.I): "continued",
}

Sentence = tuple[int, str]  # its line, its text


def main() -> int:
    """Print every fault; return the exit status."""
    if len(LONGER) > 10:
        print("LONGER has more than ten sentences")
        return 1
    names = subprocess.run(["git", "ls-files", "-z", "*.md", "*.py"], capture_output=True, text=True, check=True).stdout
    faults = [fault for name in sorted(filter(None, names.split("\0"))) for fault in faults_of(Path(name))]
    print("\n".join(faults) or "prose: no faults")
    return 1 if faults else 0


def faults_of(path: Path) -> Iterator[str]:
    """Yield the faults of one file as `file:line: fault`."""
    text = path.read_text()
    if path.suffix == ".md":
        if path.name == "CHANGELOG.md":
            return
        sentences = list(sentences_of_markdown(text))
    else:
        sentences = []
        for line, docstring in docstrings(text):
            if match := BAD_OPENINGS.match(docstring):
                yield f"{path}:{line}: docstring begins with {match.group()!r}: {docstring[:60]!r}"
            sentences += sentences_of(line, docstring)
        sentences += comments(text)
    for line, sentence in sentences:
        if (count := len(words(sentence))) > MOST_WORDS and not sentence.startswith(LONGER or ("\0",)):
            yield f"{path}:{line}: {count} words: {sentence[:80]}..."
        for phrase, better in BAD_PHRASES.items():
            if match := phrase.search(sentence):
                yield f"{path}:{line}: {match.group()!r}, say {better!r}: {sentence[:80]}"


def words(sentence: str) -> list[str]:
    """Split a sentence into words; code in backticks and an address count as one each."""
    plain = re.sub(r"`[^`]*`", "CODE", sentence)
    plain = re.sub(r"\]\([^)]*\)", "]", plain)
    return [word for word in plain.split() if re.search(r"\w", word)]


def sentences_of(line: int, text: str) -> Iterator[Sentence]:
    """Yield the sentences of a text that begins at `line`; a blank line, a list item and a section end one."""
    start, lines = line, []
    for number, row in enumerate([*text.splitlines(), ""], line):
        item = re.match(r"\s*(?:[-*|]|\d+\.|#+|:param|[\w`*, ]+:(?:\s|$))", row)
        if lines and (not row.strip() or item):
            yield from ((start, part) for part in split_sentences(" ".join(lines)))
            lines = []
        if row.strip():
            start = start if lines else number
            lines.append(row.strip())


def split_sentences(text: str) -> list[str]:
    """Split at full stops, question marks, exclamation marks and the borders of table cells."""
    text = re.sub(r"\b(e\.g|i\.e|cf|vs|approx|no|Sec|Eq|Fig)\.", r"\1", text)
    return [part.strip() for part in re.split(r"(?<=[.!?])[\")*`]*\s+|\s\|\s", text) if part.strip()]


def sentences_of_markdown(text: str) -> Iterator[Sentence]:
    """Yield the sentences of a Markdown page; fenced code is no text."""
    kept, fenced = [], False
    for row in text.splitlines():
        if row.lstrip().startswith("```"):
            fenced = not fenced
            row = ""
        kept.append("" if fenced else row)
    yield from sentences_of(1, "\n".join(kept))


def docstrings(text: str) -> Iterator[Sentence]:
    """Yield every docstring with its first line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, docstring


def comments(text: str) -> Iterator[Sentence]:
    """Yield the sentences of comments that stand on lines of their own."""
    block: list[str] = []
    for number, row in enumerate([*text.splitlines(), ""], 1):
        match = re.match(r"\s*#(?!:|!) ?(.*)", row)
        if match and not re.match(r"\s*(?:ruff|mypy|type|noqa|pragma)\b", match.group(1)):
            block.append(match.group(1))
        elif block:
            yield from sentences_of(number - len(block), "\n".join(block))
            block = []


if __name__ == "__main__":
    sys.exit(main())
