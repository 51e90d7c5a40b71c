"""Experiments made without training: what DVC shows of them, what applying one brings, and where none can be made."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dvc_project import PARAMS, TinyProject, environment

from pipeline.errors import UserError
from pipeline.tune.snapshots import Experiment, publish

NAMES = ["vae-abc123-trial-000", "vae-abc123-trial-001"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A project in which every stage of both families has run, committed. Not to be changed."""
    project = TinyProject.make(tmp_path_factory.mktemp("made") / "a project")
    project.dvc("repro", "-q")
    project.commit("results")
    return project


@pytest.fixture
def project(made: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A copy of it, the working directory of the test."""
    path = tmp_path / "a project"
    shutil.copytree(made.path, path, symlinks=True)
    return enter(TinyProject(path, tmp_path / "ran"), monkeypatch)


def enter(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    monkeypatch.chdir(project.path)
    for name in [name for name in os.environ if name.startswith(("DVC_", "GIT_"))]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    return project


def write(number: int, root: Path) -> None:
    """The outputs of train@vae and tune@vae for a trial."""
    files = {
        "models/vae/baseline/model": f"trial {number}",
        "models/vae/best/model": f"best beside {number}",
        "results/train/vae/metrics.json": f'{{"val_loss": 7.{number}}}',
        "results/train/vae/curves.tsv": f"epoch\tloss\n1\t7.{number}\n",
        "results/tune/vae/trials.csv": f"trial,loss\nbaseline,7.{number}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def trials(count: int = 2) -> list[Experiment]:
    return [
        Experiment(name, {"models.vae.beta": 0.5 + i, "train.epochs": 5}, "a trial", partial(write, i))
        for i, name in enumerate(NAMES[:count])
    ]


def bare(number: int = 9) -> Experiment:
    return Experiment(f"vae-abc123-trial-{number:03d}", {"models.vae.beta": 0.1}, "stopped")


def own_state(project: TinyProject) -> list[str]:
    """What of Git's and DVC's is the user's own."""
    asked = (["ls-files", "--stage"], ["status", "--porcelain"], ["for-each-ref", "refs/heads", "refs/stash"])
    files = [(project.path / name).read_text() for name in (".git/HEAD", "dvc.lock", "params.yaml")]
    return [*files, *(project.git(*command) for command in asked)]


def test_dvc_shows_parameters_and_figures_of_each(project: TinyProject) -> None:
    before = own_state(project)
    assert publish("vae", [*trials(), bare()], running=False) == [*NAMES, "vae-abc123-trial-009"]
    rows = project.shown()
    assert [rows[name]["models.vae.beta"] for name in NAMES] == ["0.5", "1.5"]
    assert [rows[name]["train.epochs"] for name in NAMES] == ["5", "5"]
    figures = "results/train/vae/metrics.json:val_loss"
    assert [rows[name][figures] for name in NAMES] == ["7.0", "7.1"]
    stopped = rows["vae-abc123-trial-009"]
    assert (stopped["models.vae.beta"], stopped[figures]) == ("0.1", "")
    for row in rows.values():  # the test figures of the baseline are not those of a trial
        assert row["results/evaluate/vae.json:test_loss"] == ""
        assert row["results/evaluate/other.json:test_loss"] == "8.0"
    assert own_state(project) == before
    assert not list((project.path / ".dvc" / "tmp").glob("trials-*"))
    assert "7.1" in project.dvc("plots", "diff", *NAMES, "--json")


def test_applied_one_brings_its_model_and_only_what_follows_runs(project: TinyProject) -> None:
    publish("vae", trials(), running=False)
    project.dvc("exp", "apply", NAMES[1])
    assert (project.path / "models/vae/baseline/model").read_text() == "trial 1"
    assert (project.path / "models/vae/best/model").read_text() == "best beside 1"
    expected = PARAMS.replace("beta: 1.0", "beta: 1.5").replace("epochs: 3", "epochs: 5")
    assert (project.path / "params.yaml").read_text() == expected
    assert "up to date" in project.dvc("status", "train@vae", "tune@vae")
    project.ran()
    project.dvc("repro", "-q", "evaluate@vae")
    assert project.ran() == ["evaluate@vae"]
    assert (project.path / "results/evaluate/vae/picture").read_text() == "trial 1"


def test_applied_parameters_are_trained(project: TinyProject) -> None:
    publish("vae", [bare()], running=False)
    project.dvc("exp", "apply", "vae-abc123-trial-009")
    assert (project.path / "params.yaml").read_text() == PARAMS.replace("beta: 1.0", "beta: 0.1")
    project.ran()
    project.dvc("repro", "-q", "evaluate@vae")
    assert project.ran() == ["train@vae", "tune@vae"]  # this model is the old one, so DVC knows what follows
    assert project.git("log", "-1", "--format=%s", project.experiments()["vae-abc123-trial-009"]) == "stopped"


def test_what_is_there_stays_and_what_changed_is_replaced(project: TinyProject) -> None:
    publish("vae", trials(), running=False)
    first = project.experiments()
    assert publish("vae", trials(), running=False) == []
    assert project.experiments() == first
    other = Experiment(NAMES[1], {"models.vae.beta": 3.5}, "a trial", partial(write, 4))
    assert publish("vae", [trials()[0], other], running=False) == [NAMES[1]]
    now = project.experiments()
    assert now[NAMES[0]] == first[NAMES[0]]
    assert now[NAMES[1]] != first[NAMES[1]]


SCRIPT = """\
import sys
from test_experiments import publish, trials
print("published", publish(sys.argv[1], trials(), running=True))
"""


@pytest.mark.parametrize("command", [["repro"], ["exp", "run"], ["exp", "run", "--temp"]], ids=" ".join)
def test_published_from_within_the_running_stage(command: list[str], tmp_path: Path) -> None:
    """The first run ever: no stage has an entry in dvc.lock, and those that follow have none for long."""
    project = TinyProject.make(tmp_path / "a project")
    (tmp_path / "publish.py").write_text(SCRIPT)
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    printed = project.dvc(*command, "tune@vae", PUBLISH=str(tmp_path / "publish.py"), PYTHONPATH=paths)
    assert f"published {NAMES}" in printed
    project.git("reset", "-q", "--hard")
    assert project.shown()[NAMES[1]]["models.vae.beta"] == "1.5"
    project.dvc("exp", "apply", NAMES[1])
    assert (project.path / "models/vae/baseline/model").read_text() == "trial 1"
    assert "up to date" in project.dvc("status", "train@vae", "tune@vae")
    project.ran()
    project.dvc("repro", "-q", "evaluate@vae")
    assert project.ran() == ["evaluate@vae"]


def test_changes_that_are_not_committed_are_part_of_it(project: TinyProject) -> None:
    (project.path / "stage.sh").write_text((project.path / "stage.sh").read_text() + "# changed\n")
    (project.path / "untracked").touch()
    project.dvc("repro", "-q")
    publish("vae", trials(1), running=False)
    assert "# changed" in project.git("show", f"{project.experiments()[NAMES[0]]}:stage.sh")
    project.git("checkout", "-q", ".")
    project.dvc("exp", "apply", NAMES[0])
    assert "up to date" in project.dvc("status", "train@vae", "tune@vae")


def detach(project: TinyProject) -> TinyProject:
    project.git("checkout", "-q", "--detach")
    return project


def shallow(project: TinyProject) -> TinyProject:
    clone = TinyProject(project.path.parent / "clone", project.ran_file)
    project.git("clone", "-q", "--depth", "1", f"file://{project.path}", str(clone.path))
    clone.git("config", "user.name", "A. User")
    clone.git("config", "user.email", "user@example.org")
    clone.dvc("cache", "dir", "--local", str(project.path / ".dvc" / "cache"))
    clone.dvc("checkout", "-q")
    return clone


def of_a_larger_repository(project: TinyProject) -> TinyProject:
    part = TinyProject.make(project.path.parent / "whole" / "part", top=project.path.parent / "whole")
    part.dvc("repro", "-q")
    part.commit("results")
    return part


@pytest.mark.parametrize("change", [detach, shallow, of_a_larger_repository])
def test_works_in(
    change: Callable[[TinyProject], TinyProject], project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = enter(change(project), monkeypatch)
    assert publish("vae", trials(), running=False) == NAMES
    project.dvc("exp", "apply", NAMES[1])
    assert (project.path / "models/vae/baseline/model").read_text() == "trial 1"
    assert "up to date" in project.dvc("status", "train@vae", "tune@vae")


def without_git(project: TinyProject) -> None:
    shutil.rmtree(project.path / ".git")
    project.dvc("config", "core.no_scm", "true")


def without_commit(project: TinyProject) -> None:
    shutil.rmtree(project.path / ".git")
    project.git("init", "-q")


def anonymous(project: TinyProject) -> None:
    project.git("config", "--unset", "user.email")


def bare_repository(project: TinyProject) -> None:
    project.git("config", "core.bare", "true")


def no_scm(project: TinyProject) -> None:
    project.dvc("config", "core.no_scm", "true")


def other_parameters(project: TinyProject) -> None:
    (project.path / "params.yaml").write_text(PARAMS.replace("beta: 1.0", "beta: 4.0"))


def no_dvc(project: TinyProject) -> None:
    shutil.rmtree(project.path / ".dvc")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_git, "not a git repository"),
        (without_commit, "no commit yet"),
        (anonymous, r"set user\.name and user\.email"),
        (bare_repository, "work tree"),
        (no_scm, r"core\.no_scm is set"),
        (other_parameters, r"train@vae is not as dvc\.lock has it; run `dvc repro tune@vae`"),
        (no_dvc, "no DVC project"),
    ],
)
def test_says_in_one_line_why_it_cannot(
    spoil: Callable[[TinyProject], None], reason: str, project: TinyProject
) -> None:
    spoil(project)
    with pytest.raises(UserError, match=reason) as error:
        publish("vae", trials(), running=False)
    assert "\n" not in str(error.value)


def test_without_the_program_git(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no program `git`"):
        publish("vae", trials(), running=False)


def test_a_name_that_git_does_not_take(project: TinyProject) -> None:
    with pytest.raises(UserError, match=r"'a\.\.b' is no name"):
        publish("vae", [Experiment("a..b", {}, "a trial", partial(write, 0))], running=False)


def test_an_output_that_no_trial_writes_is_our_mistake(project: TinyProject) -> None:
    with pytest.raises(RuntimeError, match=r"no trial writes: results/train/vae/metrics\.json"):
        publish("vae", [Experiment(NAMES[0], {}, "a trial", write_but_metrics)], running=False)


def write_but_metrics(root: Path) -> None:
    write(0, root)
    (root / "results/train/vae/metrics.json").unlink()


def test_killed_in_the_middle_it_leaves_whole_experiments_alone(project: TinyProject) -> None:
    script = textwrap.dedent("""
        import sys, time
        from dataclasses import replace
        from test_experiments import publish, trials

        def hang(root):
            print("hangs", flush=True)
            time.sleep(300)

        first, second = trials()
        publish("vae", [first, replace(second, write=hang)], running=False)
    """)
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    killed = subprocess.Popen(
        [sys.executable, "-c", script], env=environment() | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert killed.stdout is not None
    assert killed.stdout.readline() == "hangs\n"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(project.experiments()) == NAMES[:1]
    assert list((project.path / ".dvc" / "tmp").glob("trials-*"))
    assert publish("vae", trials(), running=False) == NAMES[1:]
    assert not list((project.path / ".dvc" / "tmp").glob("trials-*"))
    assert not list((project.path / ".git").rglob("*.lock"))
