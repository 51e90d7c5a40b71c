"""The linear probe against scikit-learn's logistic regression."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vae_core.metrics.probe import fit_linear_probe


@pytest.mark.parametrize("l2", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("load", [load_digits, load_wine])
def test_the_probe_equals_logistic_regression(load: Callable[..., Any], l2: float) -> None:
    features, labels = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = np.split(order, [len(labels) // 2])
    scaler = StandardScaler().fit(features[train])
    theirs = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(features[train]), labels[train])
    ours = fit_linear_probe(
        torch.from_numpy(features[train]), torch.from_numpy(labels[train]), num_classes=int(labels.max()) + 1, l2=l2
    )
    held_out = torch.from_numpy(features[test])
    expected = theirs.predict_proba(scaler.transform(features[test]))
    np.testing.assert_allclose(ours.logits(held_out).softmax(1), expected, atol=1e-2)
    accuracy = float(theirs.score(scaler.transform(features[test]), labels[test]))
    assert ours.accuracy(held_out, torch.from_numpy(labels[test])) == pytest.approx(accuracy, abs=2 / len(test))
