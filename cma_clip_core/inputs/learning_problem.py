"""The learning problem: one model configuration, the classes it predicts, and the labelled examples it learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.config import ModelConfig
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.tokenizer import Tokenizer
from schemas.taxonomy import Taxonomy


@dataclass(frozen=True, slots=True)
class LearningProblem:
    """Everything that training and evaluation need besides a model and a device.

    `build` derives the layout and the tokenizer. `dataclasses.replace` may exchange the index, or any part of the
    configuration that the tokenizer does not depend on: it depends on `backbone.architecture` and `text.context_length`.

    Attributes:
        config: the architecture, the fields that are read, and the training settings.
        layout: the classes of all attributes of the taxonomy.
        tokenizer: the tokenizer of the configuration's text tower.
        index: the labelled examples, with their families and sides.
    """

    config: ModelConfig
    layout: ClassLayout
    tokenizer: Tokenizer
    index: ExampleIndex

    @classmethod
    def build(cls, config: ModelConfig, taxonomy: Taxonomy, index: ExampleIndex) -> LearningProblem:
        """Return the problem of predicting `taxonomy` from the examples of `index`.

        Raises:
            ModelError: there is no such architecture, or it cannot be rebuilt from its name alone.
        """
        return cls(config, ClassLayout(taxonomy), Tokenizer(config), index)

    @property
    def taxonomy(self) -> Taxonomy:
        """The attributes and values that are predicted."""
        return self.layout.taxonomy

    def padded_to_context(self) -> LearningProblem:
        """Return the problem with every text padded to the context length, not to the longest text of its batch."""
        return replace(self, tokenizer=Tokenizer(self.config, whole=True))
