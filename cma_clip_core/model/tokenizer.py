"""Text to tokens: the same composition and tokenisation in training, evaluation and tagging.

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

_CHARACTERS: Final = 8  # of a text that are looked at first, for each token there is room for: mostly enough
_MOST_WORDS: Final = 200_000  # that are remembered: a catalog's ids and typing errors never end


def compose(title: str, brand: str, description: str, config: TextConfig) -> str:
    """Return the text the model reads, '' where there is none: the configured fields, in their order.

    A brand that the title already names is left out, since tokens are scarce (our choice).
    """
    texts = {"title": title, "brand": brand, "description": description}
    if "title" in config.fields and brand and brand.casefold() in title.casefold():
        texts["brand"] = ""
    return ". ".join(text for name in config.fields if (text := texts[name]))


class _Words(dict[str, tuple[int, ...]]):
    """The token ids of each word there was."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        token = "".join(tokenizer.byte_encoder[b] for b in word.encode())
        found = tuple(tokenizer.encoder[part] for part in tokenizer.bpe(token).split(" "))
        if len(self) < _MOST_WORDS:
            self[word] = found
        return found


class Tokenizer:
    """open_clip's tokenizer of an architecture, giving each text at its true length."""

    def __init__(self, config: ModelConfig, *, whole: bool = False) -> None:
        """Make the tokenizer of `config`'s text tower; `whole`: texts are padded to the context, not to the longest.

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
        # In a causal tower nothing that follows the end-of-text token can change it, so padding beyond the batch's
        # longest text is wasted work. Other towers were trained with all of it.
        self.trims = not (whole or settings.get("no_causal_mask") or settings.get("embed_cls"))
        self.pad_id = int(settings.get("pad_id", 0))
        tokenizer = self._tokenizer
        self._is_simple = type(tokenizer) is open_clip.SimpleTokenizer and tokenizer.reduction_fn is None
        self._words = _Words(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, start and end tokens included, at most `context_length` of them."""
        if not self._is_simple:
            row = self._tokenizer([text], context_length=self.context_length)[0].tolist()
            while len(row) > 1 and row[-1] == self.pad_id:
                row.pop()
            return [int(i) for i in row]
        # SimpleTokenizer's own steps, but word by word with a memory, and no further than the context reaches: a
        # description of thousands of characters costs what its first words cost. A test holds that the ids are its own.
        # The loops are the interpreter's own: this is most of what it takes to prepare a product.
        tokenizer, room = self._tokenizer, self.context_length - 2
        if not (text.isascii() and text.isprintable() and "&" not in text):
            text = tokenizer.clean_fn(text)  # repairs encoding and HTML, which plain ASCII without '&' has no need of
        else:
            text = text.lower()
        reach = _CHARACTERS * room
        while True:
            end = len(text) if reach >= len(text) else max(text.rfind(" ", 0, reach), 0)  # no word has a space in it
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
