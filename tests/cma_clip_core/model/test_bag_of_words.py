"""`pytest tests/cma_clip_core/model/test_bag_of_words.py`"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from cma_clip_core.evaluation.linear_models import UNSEEN, fit_linear, term_matrix
from cma_clip_core.model.bag_of_words import BagOfWords, pad_terms
from cma_clip_core.model.ensemble import WordScores

TEXTS = [
    "A red, RED shirt with long sleeves",
    "Rotes Hemd, groß und lang; Größe 42",
    "A red shirt of cotton; cotton is soft",
    "Рубашка красная, красная и мягкая",
    "",
    "a b c ! ?",
    "Chemise rouge, coton doux, rouge foncé",
    "A chemise of red cotton, groß, красная",
    "lang lang lang hemd",
]


def test_terms_and_weights_are_those_of_scikit_learn() -> None:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32)
    expected = vectorizer.fit_transform(TEXTS)
    bag = BagOfWords.fit(TEXTS)
    assert list(bag.terms) == sorted(vectorizer.vocabulary_)
    assert bag.idf == pytest.approx(vectorizer.idf_, rel=1e-6)
    actual = term_matrix([bag.encode(text) for text in [*TEXTS, "unknown words alone"]], len(bag))
    assert actual[:-1].toarray() == pytest.approx(expected.toarray(), abs=1e-6)
    assert actual[-1].nnz == 0


def test_the_most_common_terms_are_kept() -> None:
    bag = BagOfWords.fit(["one two three", "one two three", "one two", "one"], most=2)
    assert bag.terms == ("one", "one two")  # `two` occurs as often as `one two`, and comes later


def test_scores_of_padded_terms_are_those_of_the_regression_in_any_batch() -> None:
    bag = BagOfWords.fit(TEXTS)
    rows = [bag.encode(text) for text in TEXTS]
    targets = np.eye(4, dtype=np.bool_)[[0, 1, 0, 2, 1, 0, 1, 2, 1]]  # nothing has the last value
    features = term_matrix(rows, len(bag))
    model = fit_linear(features, targets, False, 10.0)
    scores = WordScores(torch.from_numpy(model.weight), torch.from_numpy(model.bias), torch.arange(2, 6), 7)
    whole = scores(*map(torch.from_numpy, pad_terms(rows))).numpy()
    assert whole[:, 2:6] == pytest.approx(model.logits(features), abs=1e-5)
    assert (whole[:, 5] < UNSEEN / 2).all()
    assert (whole[:, [0, 1, 6]] == 0).all()
    alone = np.concatenate([scores(*map(torch.from_numpy, pad_terms([row]))).numpy() for row in rows])
    assert np.array_equal(alone, whole)


@pytest.mark.parametrize("multi_valued", [False, True])
def test_probabilities_of_the_arrays_are_those_of_scikit_learn(multi_valued: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 5)).astype(np.float32)
    hidden = features[:, 0] > 0
    targets = np.stack([hidden, ~hidden], axis=1)
    model = fit_linear(features, targets, multi_valued, 1.0)
    expected = LogisticRegression(C=1.0, max_iter=300).fit(features, hidden).predict_proba(features)[:, 1]
    logits = model.logits(features)
    odds = logits[:, 0] if multi_valued else logits[:, 0] - logits[:, 1]
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(expected, abs=1e-3)
