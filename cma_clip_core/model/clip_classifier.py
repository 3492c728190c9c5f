"""CLIP as a classifier, which scores the picture against a prompt for each value. Untrained, this is raw CLIP.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4
(prompts, averaged over templates in the space of vectors). Fine-tuning contrasts a product's picture with the prompts of
the attribute's values; the labelled value is the positive. This is our choice: the paper of CMA-CLIP gives no details.

Letters of shapes: B batch, K attributes, C classes of all attributes, M modalities, T tokens, E width of CLIP's space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cma_clip_core.config import ModelConfig
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import Output
from cma_clip_core.model.tokenizer import Tokenizer
from schemas.taxonomy import Taxonomy

LARGEST_SCALE = 100.0  # largest scale of the logits, as in CLIP


class ClipClassifier(nn.Module):
    """Both towers and the prompts of one taxonomy. It classifies by the picture alone."""

    ids: Tensor
    lengths: Tensor
    class_of_prompt: Tensor

    def __init__(self, config: ModelConfig, taxonomy: Taxonomy, *, pretrained: bool = False) -> None:
        """Build the model; with `pretrained` False, no weights are read or downloaded. Raises ModelError."""
        super().__init__()
        self.backbone = Backbone(config, pretrained=pretrained)
        self.backbone.train_projections(True)
        self.layout = ClassLayout(taxonomy)
        tokenizer = Tokenizer(config)
        prompts = [
            (c, prompt.format(value=value))
            for attribute, part in zip(self.layout.attributes, self.layout.slices, strict=True)
            for c, value in enumerate(attribute.value_names, part.start)
            for prompt in attribute.prompts
        ]
        ids, lengths = tokenizer.pad([tokenizer.encode(text) for _, text in prompts])
        # Not part of the weights: they follow from the taxonomy.
        self.register_buffer("ids", torch.from_numpy(ids), persistent=False)
        self.register_buffer("lengths", torch.from_numpy(lengths), persistent=False)
        self.register_buffer("class_of_prompt", torch.tensor([c for c, _ in prompts]), persistent=False)
        self._known: Tensor | None = None  # cached vectors of the prompts, outside of training

    def train(self, mode: bool = True) -> ClipClassifier:
        """Set the mode, as `nn.Module.train` does, and forget the cached vectors of the prompts."""
        self._known = None
        return super().train(mode)

    def forward(self, *inputs: Tensor) -> Output:
        """Classify a batch. The arguments are those of `CmaClip.forward`; the texts are ignored.

        A product without a picture gets the same score for every value.
        """
        _, _, _, pixels, image_present = inputs
        prompts = self._prompts()
        rows = image_present.nonzero().squeeze(1)
        logits = prompts.new_zeros(len(pixels), self.layout.classes)
        if len(rows):
            vectors = self.backbone.image_features(pixels.index_select(0, rows))
            scale = self.backbone.logit_scale.exp().clamp(max=LARGEST_SCALE)
            logits = logits.index_copy(0, rows, (scale * vectors @ prompts.T).to(logits.dtype))
        present = torch.stack([torch.zeros_like(image_present), image_present], dim=1).float()
        return Output(self._odds(logits), present[:, None].expand(-1, len(self.layout.attributes), -1), {})

    def _prompts(self) -> Tensor:
        """Return the mean vector of each class's prompts [C, E], scaled to length 1."""
        if self._known is not None:
            return self._known
        each = self.backbone.text_features(self.ids, self.lengths)
        sums = each.new_zeros(self.layout.classes, each.shape[1]).index_add(0, self.class_of_prompt, each)
        vectors = F.normalize(sums, dim=-1)
        if not self.training and not torch.is_grad_enabled():
            self._known = vectors
        return vectors

    def _odds(self, logits: Tensor) -> Tensor:
        """Return the logits, with those of multi-valued attributes replaced by the log odds of their softmax.

        A multi-valued attribute is judged value by value. A cosine says which prompt fits better than the others, but not
        whether it fits.
        """
        parts = []
        for attribute, part in zip(self.layout.attributes, self.layout.slices, strict=True):
            scores = logits[:, part].float()
            if attribute.multi_valued:
                p = F.log_softmax(scores, dim=1)
                scores = p - torch.log1p(-p.exp().clamp(max=1 - 1e-6))
            parts.append(scores)
        return torch.cat(parts, dim=1)
