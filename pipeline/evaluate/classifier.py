"""The classifier in whose features distances between images are taken: trained once, for all families."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import files
from pipeline.config import FeaturesConfig
from pipeline.data.loader import Loader, Split
from pipeline.errors import UserError
from pipeline.progress import track
from vae_core.metrics.features import FeatureClassifier, classifier_accuracy, train_classifier
from vae_core.serialize import WEIGHTS, dump_tensors

METRICS = "metrics.json"
TEST_BATCH = 500


def write_classifier(train: Split, test: Split, config: FeaturesConfig, out: Path) -> dict[str, object]:
    """Train on the labels of `train`; where there are none, say so instead. Returns what metrics.json holds."""
    with files.new_directory(out) as temporary:
        if train.spec.num_classes < 2:
            metrics: dict[str, object] = {"kind": "none", "why": "the data have no labels to train a classifier on"}
        else:
            loader = Loader(train, config.seed, window_shards=8, global_batch_size=config.batch_size)
            epochs = -(-config.steps // loader.steps_per_epoch)
            batches = (batch for epoch in range(epochs) for batch in loader.epoch(epoch))
            shown = track(batches, total=config.steps, what="train the feature classifier", unit="steps")
            model = train_classifier(shown, train.spec, steps=config.steps, seed=config.seed)
            (temporary / WEIGHTS).write_bytes(dump_tensors(model.state_dict()))
            tested = Loader(test, config.seed, window_shards=1, global_batch_size=TEST_BATCH).sequential(TEST_BATCH)
            accuracy = round(classifier_accuracy(model, tested), 6)
            metrics = {"kind": "classifier", "steps": config.steps, "test_accuracy": accuracy}
        files.write_json(temporary / METRICS, metrics)
    return metrics


def open_classifier(folder: Path, split: Split) -> FeatureClassifier | None:
    """What `write_classifier` wrote; None where the data have no labels.

    Raises:
        UserError: it is missing or damaged.
    """
    if split.spec.num_classes < 2:
        return None
    model = FeatureClassifier(split.spec)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: {error}; make it again with `dvc repro features`") from None
    return model.eval().requires_grad_(False)
