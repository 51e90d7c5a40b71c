"""measure one family's baseline and best model on the whole test split, draw pictures, say what stands out"""

from pipeline import files
from pipeline.config import Params
from pipeline.data.loader import open_split
from pipeline.evaluate.classifier import open_classifier
from pipeline.evaluate.figures import figures
from pipeline.evaluate.metrics import evaluate_model
from pipeline.evaluate.models import open_model, open_prior, same_model
from pipeline.figures import save_png
from pipeline.progress import say
from pipeline.stages import FEATURES, MODELS, RESULTS, SHARDS, required
from vae_core.metrics.diagnosis import diagnose
from vae_core.metrics.primary import primary


def main(params: Params, family: str | None) -> None:
    family = required(family)
    config, models, out = params.evaluate, MODELS / family, RESULTS / "evaluate"
    train, test = (open_split(SHARDS, name, params.compute.read) for name in ("train", "test"))
    classifier, prior = open_classifier(FEATURES, test), open_prior(models / "prior")
    best = open_model(models / "best")
    scores = evaluate_model(
        best, train, test, config, prior=prior, classifier=classifier, what=f"evaluate {family} best"
    )
    if same_model(models / "best", models / "baseline"):
        baseline = scores
    else:  # whose codes have no prior of their own
        baseline = evaluate_model(
            open_model(models / "baseline"), train, test, config, prior=None, classifier=classifier,
            what=f"evaluate {family} baseline",
        )  # fmt: skip
    findings = diagnose(scores, best.config)
    files.write_json(out / f"{family}.json", {"baseline": {"test": baseline}, "best": {"test": scores}})
    files.write_json(
        RESULTS / "diagnosis" / f"{family}.json",
        [{"name": each.name, "evidence": each.evidence, "remedy": each.remedy} for each in findings],
    )
    with files.new_directory(out / family) as temporary:
        for name, figure in figures(best, test, config, prior).items():
            save_png(figure, temporary / f"{name}.png")
    name = primary(scores)
    say(f"{family}: test {name} {scores[name]:.2f} (baseline {baseline[name]:.2f}); pictures: {out / family}")
    for each in findings:
        say(f"{family}: {each}")
