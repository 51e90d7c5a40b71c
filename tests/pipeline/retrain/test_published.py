"""What a night gives to the registry, to origin and to the DVC remote: of a real project with a model, in a clone."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from registry_project import RegistryProject

from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.git import git
from pipeline.registry.artifact import artifact_in, where
from pipeline.registry.promotion import promote as register
from pipeline.registry.promotion import rollback
from pipeline.registry.versions import champion
from pipeline.retrain import experiment, promotion
from pipeline.retrain.champions import champion_of
from pipeline.retrain.clone import Clone, cloned
from pipeline.retrain.config import RetrainConfig
from pipeline.retrain.gate import decide
from pipeline.retrain.origin import listed
from pipeline.retrain.report import Report, Verdict
from pipeline.retrain.sources import Sources

pytestmark = [
    pytest.mark.usefixtures("own_git"),
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # in a library below DVC
]

NAME = "retrain-of-a-test"
NOTHING = Sources({}, {}, frozenset(), ())
OLD, NEW = {"neg_elbo_nats": 2.0}, {"neg_elbo_nats": 1.0}
DECISION = decide(OLD, NEW, RetrainConfig())


@dataclass(frozen=True)
class Night:
    """A project, the clone of its HEAD, whose model nobody pushed, and a challenger trained there."""

    project: RegistryProject
    clone: Clone
    made: str
    report: Report

    def promote(self, *, push: bool) -> str:
        return promotion.promote(self.clone, self.report, self.made, branch="main", push=push)

    def publish(self) -> None:
        experiment.show(self.clone)
        experiment.publish(self.clone, NAME)

    def is_at_remote(self, commit: str) -> bool:
        return bool(where(self.project.path, artifact_in(self.project.path, "vae", commit)).remote)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RegistryProject:
    project = RegistryProject.make(tmp_path_factory.mktemp("published") / "made")
    for name, text, more in (
        ("dvc.yaml", "      - artifacts/${item.family}\n", "      - models/${item.family}/best\n"),
        ("export.sh", 'mkdir -p "artifacts/$1"\n', 'mkdir -p "models/$1/best"\n'),
        (".gitignore", "/artifacts/\n", "/models/\n"),
    ):
        path = project.path / name
        path.write_text(path.read_text().replace(text, text + more))
    project.train(latent_dim=5)
    project.tiny.git("push", "-q", "origin", "main")
    return project


@pytest.fixture
def project(made: RegistryProject, tmp_path: Path) -> RegistryProject:
    return made.copy(tmp_path / "a")


def begun(project: RegistryProject, clone: Clone, challenger: str) -> Night:
    verdict = Verdict("vae", champion_of(project.path, "vae", clone.head), OLD, NEW, DECISION)
    return Night(project, clone, challenger, Report(NAME, clone.head, NOTHING, verdicts=(verdict,)))


@pytest.fixture
def night(project: RegistryProject) -> Iterator[Night]:
    with cloned(project.path, project.head, load_params(project.path / "params.yaml"), NOTHING) as clone:
        in_clone = RegistryProject(clone.root.parent)
        in_clone.set("models.vae.latent_dim", 6)
        in_clone.dvc("repro", "-q", "export@vae", folder=clone.root)
        clone.git("commit", "-q", "-a", "-m", "challenger")
        challenger = clone.git("rev-parse", "HEAD")
        clone.git("update-ref", experiment.reference(clone.head, NAME), challenger)
        yield begun(project, clone, challenger)


def test_without_a_push_the_remotes_get_nothing(night: Night) -> None:
    night.promote(push=False)
    found = champion(night.project.path, "vae")
    assert found is not None
    assert (found.version, found.commit) == ("v1.1.0", night.made)
    assert not night.is_at_remote(night.made)
    assert night.project.tags(night.project.origin) == []


def test_with_a_push_others_can_get_both_models(night: Night) -> None:
    project, head = night.project, night.clone.head
    assert not night.is_at_remote(head)
    night.publish()
    night.promote(push=True)
    assert project.tags(project.origin) == project.tags()
    assert night.is_at_remote(head)
    assert night.is_at_remote(night.made)


def test_tags_that_were_made_during_the_night_are_counted(night: Night) -> None:
    register(night.project.path, "vae", "HEAD~1", message="to try it", stage="staging")
    said = night.promote(push=False)
    assert "vae@v1.1.0, vae#prod#2, vae@v1.2.0, vae#prod#3; main is at" in said


def test_another_champion_by_now_is_left_where_it_is(night: Night) -> None:
    register(night.project.path, "vae", "HEAD", message="by hand")
    tags = night.project.tags()
    with pytest.raises(UserError, match=r"^the champion of vae is v1\.0\.0 .* now, and was not registered .*run the"):
        night.promote(push=True)
    assert (night.project.tags(), night.project.tags(night.project.origin)) == (tags, [])
    assert promotion.finish(night.project.path) is None


def test_a_rollback_during_the_night_is_left_too(project: RegistryProject) -> None:
    for commit in ("HEAD~1", "HEAD"):
        register(project.path, "vae", commit, message="by hand")
    with cloned(project.path, project.head, load_params(project.path / "params.yaml"), NOTHING) as clone:
        night = begun(project, clone, clone.head)
        rollback(project.path, "vae", message="it is worse")
        with pytest.raises(UserError, match=r"^the champion of vae is v1\.0\.0 .* now, and was v1\.1\.0 "):
            night.promote(push=False)
    assert promotion.finish(project.path) is None


def test_another_checkout_finds_the_experiment_and_its_files(night: Night, tmp_path: Path) -> None:
    head, fresh = night.clone.head, tmp_path / "fresh"
    night.publish()
    assert night.is_at_remote(night.made)
    git(tmp_path, "clone", "-q", str(night.project.origin), str(fresh))
    there = listed(fresh)
    experiment.fetch(fresh, there, head, "another")
    assert experiment.commit(fresh, experiment.reference(head, "another")) is None
    for _ in range(2):
        experiment.fetch(fresh, there, head, NAME)
        assert experiment.commit(fresh, experiment.reference(head, NAME)) == night.made


def test_an_origin_that_takes_no_experiments_is_no_failure(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    hook = night.project.origin / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    night.publish()
    assert f"origin does not take the experiment {NAME} (`git push`: hook declined)" in "".join(capsys.readouterr())


def test_a_proposal_on_a_branch_with_other_commits_says_what_to_do(night: Night) -> None:
    for _ in range(2):
        promotion.propose(night.clone, night.made, "nightly")
    other = night.clone.git("commit-tree", "-p", night.clone.head, "-m", "another night", f"{night.made}^{{tree}}")
    with pytest.raises(UserError, match=r"^--branch: nightly at origin has other commits; merge or delete it there"):
        promotion.propose(night.clone, other, "nightly")
    assert listed(night.project.path)["refs/heads/nightly"] == night.made
    shutil.rmtree(night.project.origin)
    with pytest.raises(UserError, match=r"^cannot push nightly to origin"):
        promotion.propose(night.clone, other, "nightly")
    assert night.project.tiny.git("for-each-ref", promotion.KEPT) == ""
