"""The challenger is trained as a DVC experiment, and both models are measured on the current test split."""

from collections.abc import Mapping, Sequence

from pipeline.config import Params
from pipeline.registry.promotion import promote as register
from pipeline.retrain import experiment
from pipeline.retrain.champions import Champion, champion_of
from pipeline.retrain.clone import Clone
from pipeline.retrain.data_gate import manifest_of
from pipeline.retrain.figures import Brought, bring, check_names, of_challenger, of_champion
from pipeline.retrain.gate import decide
from pipeline.retrain.report import Verdict
from pipeline.stages import MODELS


def champions(clone: Clone, params: Params, families: Sequence[str]) -> dict[str, Brought]:
    """The champion of each family that has one, before anything is trained that could not be compared with it.

    Raises:
        UserError: one cannot be had or does not fit the data, a model that is no version yet could not be made one,
            or retrain.metric or retrain.limits name figures that there will not be.
    """
    manifest = manifest_of(clone)
    check_names(params, families, manifest)
    found = {family: champion_of(clone.home, family, clone.head) for family in families}
    for champion in found.values():
        if champion is not None and champion.version is None:
            register(clone.home, champion.family, clone.head, message="a trial", dry_run=True)
    return {family: bring(clone, each, manifest.spec) for family, each in found.items() if each is not None}


def trained(clone: Clone, params: Params, families: Sequence[str], name: str) -> str:
    """The commit of the DVC experiment `name`, of which the clone has all files then; it is run if it is not there.

    Raises:
        ChildFailed: a stage failed.
    """
    reference = experiment.reference(clone.head, name)
    found = experiment.commit(clone.home, reference)
    if found is not None:
        clone.go_to(found)
        if all((clone.root / MODELS / family / "best").exists() for family in families):
            return found
        clone.go_to(clone.head)
    targets = [] if set(families) == set(params.families) else [f"export@{family}" for family in families]
    clone.dvc("exp", "run", *clone.pulling, "--name", name, *targets)
    return clone.git("rev-parse", "--verify", reference)


def judged(clone: Clone, params: Params, families: Sequence[str], brought: Mapping[str, Brought]) -> list[Verdict]:
    """The two models of each family side by side, and the decision between them."""
    return [_verdict(clone, params, family, brought.get(family)) for family in families]


def _verdict(clone: Clone, params: Params, family: str, brought: Brought | None) -> Verdict:
    champion: Champion | None = None if brought is None else brought.champion
    before = None if brought is None else of_champion(clone, params, brought)
    now = of_challenger(clone, family)
    return Verdict(family, champion, before, now, decide(before, now, params.retrain))
