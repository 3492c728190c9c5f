"""CLIP as a classifier: prompts, columns, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cma_clip_core.inputs.batches import prepare
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.clip_classifier import LARGEST_SCALE, ClipClassifier
from cma_clip_core.model.methods import configure
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.training.fit import fit
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")
TEMPLATES = {"colour": ("a photo of a {value} garment", "{value} clothing"), "material": ("made of {value}",)}


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    document = drawn.taxonomy().model_dump()
    for attribute in document["attributes"]:
        attribute["prompts"] = TEMPLATES.get(attribute["name"], attribute["prompts"])
    return Taxonomy.model_validate(document)


def test_each_value_is_scored_by_the_mean_of_its_own_prompts(taxonomy: Taxonomy) -> None:
    config = configure(drawn.config(), "raw-clip")
    torch.manual_seed(0)
    model = ClipClassifier(config, taxonomy).eval()
    tokenizer = Tokenizer(config)
    inputs = prepare(drawn.batch(20), config, tokenizer).inputs(np.arange(20), tokenizer)
    seen = inputs.image_present
    assert 10 < int(seen.sum()) < 20
    with torch.inference_mode():
        found = model(*inputs)
        pictures = F.normalize(model.backbone.image_features(inputs.pixels[seen]), dim=-1)
        scale = model.backbone.logit_scale.exp().clamp(max=LARGEST_SCALE)
        column = 0
        for attribute in taxonomy.attributes:
            scores = []
            for value in attribute.value_names:
                vectors = []
                for template in attribute.prompts:
                    ids, lengths = tokenizer.pad([tokenizer.encode(template.format(value=value))])
                    text = model.backbone.text_features(torch.from_numpy(ids), torch.from_numpy(lengths))
                    vectors.append(F.normalize(text[0], dim=-1))
                scores.append(scale * pictures @ F.normalize(torch.stack(vectors).mean(dim=0), dim=-1))
            expected = torch.stack(scores, dim=1)
            if attribute.multi_valued:
                expected = torch.logit(expected.softmax(dim=1))
            part = slice(column, column + len(scores))
            torch.testing.assert_close(found.logits[seen, part], expected, rtol=1e-4, atol=1e-4)
            assert (found.logits[~seen, part].std(dim=1) < 1e-6).all()  # without a picture all values are alike
            column = part.stop
    assert found.logits.shape == (20, column)
    assert found.lambdas[:, :, 1].equal(seen.float()[:, None].expand(-1, len(taxonomy.attributes)))


def test_fine_tuned_it_tells_what_the_picture_shows(tmp_path: Path, taxonomy: Taxonomy) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(400)))
    raw, tuned = (configure(drawn.config(epochs=8), method) for method in ("raw-clip", "fine-tuned-clip"))
    accuracy = {}
    for config in (raw, tuned):
        _, fitted = fit(LearningProblem.build(config, taxonomy, index), QUIET)
        colour = fitted.validation["colour"]
        accuracy[config.training.epochs] = (colour.logits.argmax(1) == colour.targets.argmax(1)).mean()
    assert accuracy[0] < 0.6 < 0.8 < accuracy[8]
