"""write one family's best model as safetensors and ONNX with a model card -> artifacts/F"""

from pipeline import files
from pipeline.config import Params
from pipeline.data.loader import open_split
from pipeline.export.artifacts import export
from pipeline.progress import say
from pipeline.stages import ARTIFACTS, MODELS, RESULTS, SHARDS, required


def main(params: Params, family: str | None) -> None:
    family = required(family)
    scores = files.read_json(RESULTS / "evaluate" / f"{family}.json")
    split = open_split(SHARDS, "test", params.compute.read)
    models = MODELS / family
    export(family, models / "best", models / "prior", scores, split, params.export, ARTIFACTS / family)
    say(f"artifacts: {ARTIFACTS / family}")
