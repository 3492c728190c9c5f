"""Word lists that ship with the project: colours and placeholders (``schemas/words/*.yaml``)."""

from __future__ import annotations

from importlib import resources

from schemas.loading import Strict, parse_yaml
from schemas.taxonomy import Text


class WordList(Strict):
    """A list of words."""

    words: tuple[Text, ...]


def load_words(name: str) -> frozenset[str]:
    """Return the words of the shipped list `name`.

    Raises:
        ContractError: the list is wrong; the message says where and why.
    """
    # Spark's executors import this package from a zip, where a file has no path of its own.
    file = resources.files("schemas") / "words" / f"{name}.yaml"
    return frozenset(parse_yaml(file.read_text(encoding="utf-8"), WordList, str(file)).words)
