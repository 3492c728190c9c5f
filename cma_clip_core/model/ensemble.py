"""Ensemble of up to three members: a bag of words, pretrained picture features, and CMA-CLIP.

Each attribute has its own weights of the members. Its logits are the weighted sum of theirs, a logarithmic opinion pool
(Genest and Zidek 1986, "Combining Probability Distributions", Statistical Science 1). A weight of 1 for one member and 0
for the others means that this member alone answers. The training side chooses the weights
(cma_clip_core.training.choose_methods).

A member that does not see a product's input, such as the bag of words in a text without known words, has no say for it. If no
member of an attribute sees anything, the most frequent value is named with the least confidence (`GUESS`).

Letters of shapes: B batch, K attributes, C classes of all attributes, D classes that a linear member scores. E members,
M modalities (0 text, 1 image), N terms of a text, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cma_clip_core.model.backbone import Sequence
from cma_clip_core.model.bag_of_words import BagOfWords
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import Output
from cma_clip_core.model.picture_features import PictureFeatures, encode_present

WORDS: Final = "bag-of-words"
PICTURES: Final = "picture-features"
CMA_CLIP: Final = "cma-clip"
MEMBERS: Final = (WORDS, PICTURES, CMA_CLIP)  # E, cheapest first

GUESS: Final = 1e-5  # factor of the logits where no member sees anything: all values are nearly equally likely
UNLIKELY: Final = -0.01  # added there for a multi-valued attribute: no value is more likely than not

_State = Mapping[str, Tensor]


class LinearScores(nn.Module):
    """A linear layer from features to the logits of some of the classes."""

    columns: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, columns: Tensor, classes: int) -> None:
        """Create the layer.

        Args:
            weight: [features, D].
            bias: [D].
            columns: [D] int64, the class of each column.
            classes: C.
        """
        super().__init__()
        self.classes = classes
        for name, tensor in (("weight", weight), ("bias", bias), ("columns", columns)):
            self.register_buffer(name, tensor)

    def spread(self, scores: Tensor) -> Tensor:
        """Return scores [B, D] as logits [B, C], 0 for the other classes."""
        return scores.new_zeros(len(scores), self.classes).index_copy(1, self.columns, scores + self.bias)


class WordScores(LinearScores):
    """Linear scores of the terms of a text."""

    def forward(self, terms: Tensor, weights: Tensor) -> Tensor:
        """Return the logits [B, C] of term ids [B, N] with TF-IDF weights [B, N]."""
        return self.spread(F.embedding_bag(terms, self.weight, per_sample_weights=weights, mode="sum"))


class PictureScores(LinearScores):
    """Linear scores of the features of a picture."""

    absent: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, columns: Tensor, classes: int, absent: Tensor) -> None:
        """Create the layer; `absent` [D] are the scores of a product without a picture, and the rest is as in `LinearScores`."""
        super().__init__(weight, bias, columns, classes)
        self.network = PictureFeatures()
        self.register_buffer("absent", absent)

    def forward(self, pixels: Tensor, present: Tensor) -> Tensor:
        """Return the logits [B, C] of pictures [B, H, W, 3] that exist [B] bool."""
        features = encode_present(self.network, pixels, present)
        with torch.autocast(features.device.type, enabled=False):
            scores = torch.where(present[:, None], features @ self.weight, self.absent - self.bias)
        return self.spread(scores)


class Ensemble(nn.Module):
    """The members of a model version, and their weights for each attribute."""

    coefficients: Tensor
    shares: Tensor
    attribute_of: Tensor
    unlikely: Tensor

    def __init__(
        self,
        layout: ClassLayout,
        *,
        cma: nn.Module | None,
        words: WordScores | None,
        pictures: PictureScores | None,
        bag: BagOfWords | None,
        shares: Tensor,
        coefficients: Tensor,
    ) -> None:
        """Create the ensemble; a member that no attribute uses may be None.

        Args:
            layout: the classes.
            cma: CMA-CLIP, or another model with the same inputs and output.
            words: the scores of the bag of words.
            pictures: the scores of the picture features.
            bag: the vocabulary of `words`.
            shares: [E, K], each member's weight for each attribute.
            coefficients: [E, C], the factor of each member's logits: its weight, divided by its temperature.
        """
        super().__init__()
        self.layout, self.bag = layout, bag
        self.words, self.pictures, self.cma = words, pictures, cma
        for name, tensor in (("shares", shares), ("coefficients", coefficients)):
            self.register_buffer(name, tensor)
        self.register_buffer(
            "idf", None if bag is None else torch.from_numpy(bag.idf)
        )  # a part of the version's weights
        self.register_buffer("attribute_of", torch.from_numpy(layout.attribute_of), persistent=False)
        unlikely = torch.tensor([UNLIKELY if a.multi_valued else 0.0 for a in layout.attributes])
        self.register_buffer("unlikely", unlikely, persistent=False)  # [K]

    @classmethod
    def from_state(cls, layout: ClassLayout, cma: nn.Module | None, bag: BagOfWords | None, state: _State) -> Ensemble:
        """Return an ensemble whose members have the sizes of those in `state`; the weights themselves are not loaded.

        Raises:
            KeyError: a tensor is missing.
        """

        def sized(member: str, *names: str) -> tuple[Tensor, ...]:
            return tuple(torch.zeros_like(state[f"{member}.{name}"]) for name in names)

        words = pictures = None
        if bag is not None:
            weight, bias, columns = sized("words", "weight", "bias", "columns")
            words = WordScores(weight, bias, columns, layout.classes)
        if "pictures.weight" in state:
            weight, bias, columns, absent = sized("pictures", "weight", "bias", "columns", "absent")
            pictures = PictureScores(weight, bias, columns, layout.classes, absent)
        return cls(
            layout, cma=cma, words=words, pictures=pictures, bag=bag,
            **{name: torch.zeros_like(state[name]) for name in ("shares", "coefficients")},
        )  # fmt: skip

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        text_present: Tensor,
        pixels: Tensor,
        image_present: Tensor,
        text: Sequence | None = None,
        image: Sequence | None = None,
        terms: Tensor | None = None,
        term_weights: Tensor | None = None,
    ) -> Output:
        """Classify a batch.

        The output's weights of text and picture are those of the members, averaged by the members' shares. CMA-CLIP's are its
        modality-wise attention. The bag of words sees the text alone, the picture features see the picture alone.

        Args:
            ids: [B, T] int64, as are the next six, the arguments of `CmaClip.forward`.
            lengths: [B].
            text_present: [B].
            pixels: [B, H, W, 3].
            image_present: [B].
            text: the cached output of CMA-CLIP's text tower.
            image: the cached output of CMA-CLIP's image tower.
            terms: [B, N] int64, the terms of each text; needed if the bag of words is a member.
            term_weights: [B, N] float32, their TF-IDF weights.
        """
        attributes = len(self.layout.attributes)
        answers: list[tuple[int, Tensor, Tensor]] = []  # member, logits [B, C], weights of the modalities [B, K, M]
        if self.words is not None:
            if terms is None or term_weights is None:
                raise ValueError("the bag of words needs the terms of the texts")
            known = (term_weights > 0).any(dim=1)[:, None] * torch.tensor([1.0, 0.0], device=ids.device)
            logits = self.words(terms, term_weights)
            answers.append((MEMBERS.index(WORDS), logits, known[:, None].expand(-1, attributes, -1)))
        if self.pictures is not None:
            shown = image_present[:, None] * torch.tensor([0.0, 1.0], device=ids.device)
            logits = self.pictures(pixels, image_present)
            answers.append((MEMBERS.index(PICTURES), logits, shown[:, None].expand(-1, attributes, -1)))
        if self.cma is not None:
            output: Output = self.cma(ids, lengths, text_present, pixels, image_present, text, image)
            answers.append((MEMBERS.index(CMA_CLIP), output.logits.float(), output.lambdas.float()))
        total = torch.zeros(len(ids), self.layout.classes, device=ids.device)
        weighted = torch.zeros(len(ids), attributes, 2, device=ids.device)
        shares = torch.zeros(len(ids), attributes, device=ids.device)
        sees = [(lambdas.sum(dim=2) > 0) & (self.shares[e] > 0) for e, _, lambdas in answers]  # each [B, K]
        nothing = ~torch.stack(sees).any(dim=0) if sees else torch.ones_like(shares, dtype=torch.bool)
        for (e, logits, lambdas), has_say in zip(answers, sees, strict=True):
            counts = torch.where(nothing, GUESS, has_say.float())[:, self.attribute_of]  # [B, C]
            total = total + self.coefficients[e] * logits * counts
            weighted = weighted + (self.shares[e] * has_say)[:, :, None] * lambdas
            shares = shares + self.shares[e] * has_say
        total = total + (nothing * self.unlikely)[:, self.attribute_of]
        return Output(total, weighted / shares.clamp(min=1e-9)[:, :, None], {})


def bag_of(model: nn.Module) -> BagOfWords | None:
    """Return the vocabulary whose terms a model reads; None if it reads none."""
    return model.bag if isinstance(model, Ensemble) else None


def cma_clip_of(model: nn.Module) -> nn.Module:
    """Return CMA-CLIP, if it is a member of `model`; otherwise `model` itself."""
    return model.cma if isinstance(model, Ensemble) and model.cma is not None else model
