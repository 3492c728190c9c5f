"""Composition and tokenisation of texts, shared by training, evaluation and tagging.

Letters of shapes: B batch, T tokens of the longest text of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import open_clip

from cma_clip_core.config import ModelConfig, TextConfig
from cma_clip_core.model.backbone import check_architecture, text_settings

Ids = npt.NDArray[np.int64]

_CHARACTERS: Final = 8  # characters read at first for each token of the context; mostly enough
_MOST_WORDS: Final = (
    200_000  # words that are cached; bounded, because a catalog has any number of ids and typing errors
)


def compose(title: str, brand: str, description: str, config: TextConfig) -> str:
    """Return the text that the model reads, made of the configured fields in their order; '' if all are empty.

    A brand that the title already names is left out, because tokens are scarce (our choice).
    """
    texts = {"title": title, "brand": brand, "description": description}
    if "title" in config.fields and brand and brand.casefold() in title.casefold():
        texts["brand"] = ""
    return ". ".join(text for name in config.fields if (text := texts[name]))


class _Words(dict[str, tuple[int, ...]]):
    """A cache of the token ids of each word."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        token = "".join(tokenizer.byte_encoder[b] for b in word.encode())
        ids = tuple(tokenizer.encoder[part] for part in tokenizer.bpe(token).split(" "))
        if len(self) < _MOST_WORDS:
            self[word] = ids
        return ids


class Tokenizer:
    """The tokenizer of an open_clip architecture, which returns each text at its true length."""

    def __init__(self, config: ModelConfig, *, whole: bool = False) -> None:
        """Create the tokenizer of the text tower.

        Args:
            config: names the architecture and the context length.
            whole: pad texts to the context length, not to the longest text of the batch.

        Raises:
            ModelError: there is no such architecture, or it cannot be rebuilt from its name alone.
        """
        architecture = config.backbone.architecture
        self.context_length = config.text.context_length
        settings: dict[str, Any] = {}
        if architecture is None:
            self._tokenizer: Any = open_clip.SimpleTokenizer(context_length=self.context_length)
        else:
            check_architecture(architecture)
            settings = text_settings(architecture)
            self._tokenizer = open_clip.get_tokenizer(architecture, context_length=self.context_length)
        # In a causal tower nothing after the end-of-text token can change it, so padding beyond the longest text of the
        # batch is wasted work. Other towers were trained with the whole padding.
        self.trims = not (whole or settings.get("no_causal_mask") or settings.get("embed_cls"))
        self.pad_id = int(settings.get("pad_id", 0))
        tokenizer = self._tokenizer
        self._is_simple = type(tokenizer) is open_clip.SimpleTokenizer and tokenizer.reduction_fn is None
        self._words = _Words(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, including the start and end tokens, at most `context_length` of them."""
        if not self._is_simple:
            row = self._tokenizer([text], context_length=self.context_length)[0].tolist()
            while len(row) > 1 and row[-1] == self.pad_id:
                row.pop()
            return [int(i) for i in row]
        # The steps of SimpleTokenizer, but word by word with a cache, and no further than the context reaches. So a
        # description of thousands of characters costs no more than its first words. A test checks that the ids are equal.
        # `chain` and `map` keep the loop in C: tokenising is most of the work of preparing a product.
        tokenizer, room = self._tokenizer, self.context_length - 2
        if not (text.isascii() and text.isprintable() and "&" not in text):
            text = tokenizer.clean_fn(text)  # repairs encoding and HTML; plain ASCII without '&' needs neither
        else:
            text = text.lower()
        reach = _CHARACTERS * room
        while True:
            end = len(text) if reach >= len(text) else max(text.rfind(" ", 0, reach), 0)  # never inside a word
            words = tokenizer.pat.findall(text, 0, end)[:room]
            ids = list(itertools.chain.from_iterable(map(self._words.__getitem__, words)))
            if len(ids) >= room or end == len(text):
                return [tokenizer.sot_token_id, *ids[:room], tokenizer.eot_token_id]
            reach *= 2

    def pad(self, texts: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
        """Return the texts as one array of ids [B, T], and their lengths [B]."""
        lengths = np.fromiter((len(ids) for ids in texts), dtype=np.int64, count=len(texts))
        width = int(lengths.max(initial=1)) if self.trims else self.context_length
        out = np.full((len(texts), width), self.pad_id, dtype=np.int64)
        for row, ids in zip(out, texts, strict=True):
            row[: len(ids)] = ids
        return out, lengths
