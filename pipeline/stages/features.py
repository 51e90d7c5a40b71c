"""train the classifier in whose features distances between images are taken -> data/features"""

from pipeline.config import Params
from pipeline.data.loader import open_split
from pipeline.evaluate.classifier import write_classifier
from pipeline.progress import say
from pipeline.stages import FEATURES, SHARDS


def main(params: Params, family: str | None) -> None:
    train, test = (open_split(SHARDS, name, params.compute.read) for name in ("train", "test"))
    metrics = write_classifier(train, test, params.features, FEATURES)
    result = metrics.get("why") or f"test accuracy {metrics['test_accuracy']}"
    say(f"features: {result}; {FEATURES}")
