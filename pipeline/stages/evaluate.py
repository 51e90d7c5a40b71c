"""measure one family's baseline and best model on the whole test split, and draw pictures"""

from pipeline import files, runtime
from pipeline.config import Params
from pipeline.data.loader import open_split
from pipeline.evaluate.figures import figures
from pipeline.evaluate.metrics import evaluate_model
from pipeline.evaluate.models import open_model, same_model
from pipeline.figures import save_png
from pipeline.progress import say
from pipeline.stages import MODELS, RESULTS, SHARDS, required

PRIMARY = "neg_elbo_nats"


def main(params: Params, family: str | None) -> None:
    runtime.end_with_dvc()
    family = required(family)
    config, models, out = params.evaluate, MODELS / family, RESULTS / "evaluate"
    split = open_split(SHARDS, "test", params.compute.read)
    best = open_model(models / "best")
    scores = evaluate_model(best, split, config, what=f"evaluate {family} best")
    if same_model(models / "best", models / "baseline"):
        baseline = scores
    else:
        baseline = evaluate_model(open_model(models / "baseline"), split, config, what=f"evaluate {family} baseline")
    files.write_json(out / f"{family}.json", {"baseline": {"test": baseline}, "best": {"test": scores}})
    with files.new_directory(out / family) as temporary:
        for name, figure in figures(best, split, config).items():
            save_png(figure, temporary / f"{name}.png")
    say(f"{family}: test {PRIMARY} {scores[PRIMARY]:.2f} (baseline {baseline[PRIMARY]:.2f}); pictures: {out / family}")
