"""Logistic regression (scikit-learn) for one attribute, as plain arrays that predict without scikit-learn.

Letters of shapes: n products, F features, C values of the attribute.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from cma_clip_core.arrays import Bools, Floats, Integers
from cma_clip_core.model.bag_of_words import Terms

UNSEEN: Final = -30.0  # logit of a value that no training product has: a probability of zero
ALWAYS: Final = 30.0  # logit of a value of a multi-valued attribute that all products have: a probability of one


@dataclass(slots=True)
class LinearModel:
    """The weights of an attribute's regression. Logits are `features @ weight + bias`."""

    weight: Floats  # [F, C]
    bias: Floats  # [C]

    def logits(self, features: Any) -> Floats:
        """Return the logits [n, C] of features [n, F], dense or sparse."""
        return np.asarray(features @ self.weight + self.bias, dtype=np.float32)


def fit_linear(features: Any, targets: Bools, multi_valued: bool, inverse_regularisation: float) -> LinearModel:
    """Fit the regression of one attribute.

    Args:
        features: [n, F] of the labelled products, dense or sparse.
        targets: [n, C], at least one True.
        multi_valued: whether each value has a regression of its own.
        inverse_regularisation: scikit-learn's C.
    """
    width, classes = features.shape[1], targets.shape[1]
    model = LinearModel(np.zeros((width, classes), np.float32), np.full(classes, UNSEEN, np.float32))
    seen = np.flatnonzero(targets.any(axis=0))
    # Small problems lose far more than they gain by several threads, and one gives the same weights on any machine.
    with _threads().limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would change only rounding
        if multi_valued:
            for c in seen:
                model.bias[c] = ALWAYS
                if not targets[:, c].all():
                    one = _regression(inverse_regularisation).fit(features, targets[:, c])
                    model.weight[:, c], model.bias[c] = one.coef_[0], one.intercept_[0]
        elif len(seen) == 1:
            model.bias[seen] = 0
        else:
            every = _regression(inverse_regularisation).fit(features, targets[:, seen].argmax(axis=1))
            if len(seen) == 2:  # scikit-learn has one row of weights then, for the second class
                model.weight[:, seen[1]], model.bias[seen] = every.coef_[0], (0, every.intercept_[0])
            else:
                model.weight[:, seen], model.bias[seen] = every.coef_.T, every.intercept_
    return model


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def _regression(inverse_regularisation: float) -> LogisticRegression:
    return LogisticRegression(C=inverse_regularisation, max_iter=300)


def term_matrix(rows: list[Terms], width: int) -> sparse.csr_matrix:
    """Return the terms of n texts as a sparse matrix [n, width]."""
    ends: Integers = np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in rows)])
    weights = np.concatenate([np.zeros(0, np.float32), *(weights for _, weights in rows)])
    # 32-bit indices: the solver refuses others.
    return sparse.csr_matrix((weights, ids.astype(np.int32), ends.astype(np.int32)), shape=(len(rows), width))
