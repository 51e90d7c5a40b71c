"""The classifier whose features stand in for Inception's: it learns, repeats itself, and needs labels."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from core_models import DIGITS, digits

from vae_core.batch import Batch
from vae_core.config import DataSpec
from vae_core.metrics.features import FEATURES, FeatureClassifier, classifier_accuracy, train_classifier

TRAIN_ROWS, BATCH, EPOCHS = 1400, 64, 12


def training_batches(epochs: int = EPOCHS) -> Iterator[Batch]:
    whole = digits(TRAIN_ROWS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN_ROWS, generator=generator).split(BATCH):
            batch = whole.apply(lambda tensor, rows=rows: tensor[rows])
            yield replace(batch, global_rows=len(rows))


def trained(seed: int = 0, epochs: int = EPOCHS) -> FeatureClassifier:
    return train_classifier(training_batches(epochs), DIGITS, steps=epochs * -(-TRAIN_ROWS // BATCH), seed=seed)


@pytest.fixture(scope="module")
def classifier() -> FeatureClassifier:
    return trained()


def test_it_classifies_digits_that_it_has_not_seen(classifier: FeatureClassifier) -> None:
    assert classifier_accuracy(classifier, [digits(397, start=TRAIN_ROWS)]) >= 0.9


def test_features_are_64_between_minus_one_and_one_and_decide_the_class(classifier: FeatureClassifier) -> None:
    x = digits(20).images.float() / 255
    features = classifier.features(x)
    assert features.shape == (20, FEATURES)
    assert features.abs().max() <= 1
    torch.testing.assert_close(classifier.out(features), classifier(x))


def test_it_is_frozen_and_in_evaluation_mode(classifier: FeatureClassifier) -> None:
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_the_same_seed_gives_the_same_classifier_and_another_another() -> None:
    one, again, other = trained(3, epochs=1), trained(3, epochs=1), trained(4, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.out.weight, other.out.weight)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained(epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one.out.weight, trained(epochs=1).out.weight)


def test_padding_rows_do_not_count() -> None:
    def padded(shift: int) -> Iterator[Batch]:
        for batch in training_batches(epochs=1):
            extra = digits(9, start=100)
            assert batch.labels is not None
            assert extra.labels is not None
            yield Batch(
                torch.cat((batch.images, extra.images)),
                torch.cat((batch.labels, (extra.labels + shift) % 10)),
                torch.cat((batch.weight, torch.zeros(9))),
                torch.arange(len(batch.images) + 9),
                len(batch.images),
            )

    steps = -(-TRAIN_ROWS // BATCH)
    with_padding, without = train_classifier(padded(1), DIGITS, steps=steps, seed=0), trained(epochs=1)
    torch.testing.assert_close(with_padding.out.weight, without.out.weight, rtol=1e-3, atol=1e-4)
    expected = classifier_accuracy(without, training_batches(epochs=1))
    assert [classifier_accuracy(without, padded(shift)) for shift in (0, 1)] == pytest.approx([expected] * 2)


def test_it_trains_where_gradients_are_off() -> None:
    with torch.no_grad():
        inside = trained(epochs=1)
    assert torch.equal(inside.out.weight, trained(epochs=1).out.weight)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (1, 1, 1000), (2, 5, 3), (3, 256, 256), (1, 1, 1)])
def test_images_and_signals_of_any_size_have_features(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    data = DataSpec(channels=channels, height=height, width=width, num_classes=3)
    model = FeatureClassifier(data)
    assert model.features(torch.zeros(2, *shape)).shape == (2, FEATURES)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000


@pytest.mark.parametrize("classes", [0, 1])
def test_data_without_labels_are_refused(classes: int) -> None:
    data = replace(DIGITS, num_classes=classes)
    with pytest.raises(ValueError, match=rf"expected data with labels of two classes or more, got {classes} classes"):
        train_classifier(training_batches(), data, steps=1, seed=0)


def test_batches_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected batches with labels, got none"):
        train_classifier([replace(digits(4), labels=None)], DIGITS, steps=1, seed=0)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batches: expected 5, one a step, got 2"):
        train_classifier([digits(4), digits(4)], DIGITS, steps=5, seed=0)


def test_no_more_batches_are_taken_than_steps() -> None:
    batches = iter([digits(4), digits(8), digits(16)])
    train_classifier(batches, DIGITS, steps=2, seed=0)
    assert len(next(batches).images) == 16


def test_the_accuracy_of_no_rows_is_refused(classifier: FeatureClassifier) -> None:
    with pytest.raises(ValueError, match="expected rows to classify, got none"):
        classifier_accuracy(classifier, [])
