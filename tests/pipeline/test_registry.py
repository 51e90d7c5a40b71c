"""The registry on a real project in Git and DVC: promoted, fetched, rolled back, refused."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import gto.api
import pytest
from dvc.repo import Repo
from dvc_project import TinyProject
from registry_project import RegistryProject, contents

from pipeline.__main__ import main
from pipeline.errors import StorageFailed, UserError
from pipeline.registry.artifact import artifact_in, check_current, config_of, where
from pipeline.registry.names import artifact_name, entries
from pipeline.registry.promotion import Promotion, promote, rollback
from pipeline.registry.versions import History, champion

pytestmark = [
    pytest.mark.usefixtures("own_git"),
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # in a library below DVC
]

FIRST, SECOND = ("vae@v1.0.0", "vae#prod#1"), ("vae@v1.1.0", "vae#prod#2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RegistryProject:
    """Two commits with a model each, both models in the cache, the first in the remotes too. Not to be changed."""
    project = RegistryProject.make(tmp_path_factory.mktemp("registry") / "made")
    (project.folder / "first").write_text(project.head)
    shutil.copytree(project.path / "artifacts" / "vae", project.folder / "first-model")
    project.train(latent_dim=5)
    return project


@pytest.fixture
def project(made: RegistryProject, tmp_path: Path) -> RegistryProject:
    return made.copy(tmp_path / "a")


def first(project: RegistryProject) -> str:
    return (project.folder / "first").read_text()


def first_model(project: RegistryProject) -> dict[str, bytes]:
    return contents(project.folder / "first-model")


def promoted(project: RegistryProject, commit: str, push_to: str | None = None) -> Promotion:
    return promote(project.path, "vae", commit, message="it is better", push_to=push_to)


def fetched(project: RegistryProject, source: str, out: str, *which: str) -> dict[str, bytes]:
    """What `dvc artifacts get` brings, from a folder that is no project."""
    project.dvc("artifacts", "get", "-q", source, "vae", *which, "-o", out, folder=project.folder)
    return contents(project.folder / out)


def test_a_commit_gets_a_version_and_a_stage_and_gto_reads_the_same(project: RegistryProject) -> None:
    done = promoted(project, "HEAD~1")
    assert (done.tags, done.previous, done.version.commit) == (FIRST, None, first(project))
    found = champion(project.path, "vae")
    assert found == done.version
    assert (found.tag, found.by, found.message) == ("vae@v1.0.0", "A. User", "it is better")
    again = promoted(project, "main")
    assert (again.tags, again.previous) == (SECOND, found)
    assert [version.version for version in History.of(project.path, "vae").versions] == ["v1.0.0", "v1.1.0"]
    assert project.tiny.git("cat-file", "-t", "vae#prod#2") == "tag"
    shown = {each["version"]: each for each in gto.api.show(project.path, "vae")}
    assert shown["v1.0.0"]["commit_hexsha"] == first(project)
    (stage,) = gto.api.find_versions_in_stage(project.path, "vae", "prod")
    assert (stage.version, stage.commit_hexsha) == ("v1.1.0", project.head)


def test_the_production_model_is_fetched_byte_for_byte_also_after_a_rollback(project: RegistryProject) -> None:
    promoted(project, first(project))
    promoted(project, "HEAD")
    assert fetched(project, "project", "new", "--stage", "prod") == project.model() != first_model(project)
    done = rollback(project.path, "vae", message="it is worse")
    assert (done.version.version, done.previous.version if done.previous else None) == ("v1.0.0", "v1.1.0")
    assert done.tags == ("vae#prod#3",)
    assert fetched(project, "project", "old", "--stage", "prod") == first_model(project)
    assert fetched(project, "project", "named", "--rev", "v1.1.0") == project.model()


def at_an_address_that_holds_anywhere(project: RegistryProject) -> None:
    project.dvc("remote", "modify", "store", "url", str(project.folder / "remote"))
    project.tiny.commit("where the remote is")


def test_the_bare_repository_and_the_dvc_remote_alone_give_the_model(project: RegistryProject) -> None:
    at_an_address_that_holds_anywhere(project)
    project.tiny.git("push", "-q", "origin", "main")
    done = promoted(project, "HEAD", "origin")
    assert done.tags == FIRST
    assert project.tags(project.origin) == project.tags() == sorted(FIRST)
    model = project.model()
    shutil.rmtree(project.path)
    alone = TinyProject(project.folder, project.folder / "ran")
    alone.dvc("artifacts", "get", "-q", "origin.git", "vae", "--stage", "prod", "-o", "out")
    assert contents(project.folder / "out") == model


def test_neither_work_tree_nor_index_is_touched(project: RegistryProject) -> None:
    (project.path / "export.sh").write_text("changed\n")
    (project.path / "new").write_text("untracked\n")
    project.tiny.git("add", "new")
    before = project.tiny.git("status", "--porcelain"), (project.path / ".git" / "index").read_bytes()
    promoted(project, "HEAD~1", "origin")
    promoted(project, "HEAD")
    rollback(project.path, "vae", message="m")
    assert ((project.path / ".git" / "index").read_bytes(), project.tiny.git("status", "--porcelain")) == before[::-1]


def test_what_is_in_the_stage_already_is_left(project: RegistryProject) -> None:
    promoted(project, "HEAD")
    again = promoted(project, "HEAD")
    assert (again.tags, again.version) == ((), again.previous)
    assert sorted(project.tags()) == sorted(FIRST)


def test_a_version_may_come_into_another_stage_and_a_number_is_chosen(project: RegistryProject) -> None:
    promoted(project, "HEAD~1")
    other = promote(project.path, "vae", "HEAD", message="m", bump="major", stage="staging")
    assert other.tags == ("vae@v2.0.0", "vae#staging#2")
    now = champion(project.path, "vae"), champion(project.path, "vae", "staging")
    assert [each.version if each else None for each in now] == ["v1.0.0", "v2.0.0"]
    assert promoted(project, "vae@v2.0.0").tags == ("vae#prod#3",)


def test_rollbacks_go_back_further_each_time(project: RegistryProject) -> None:
    for commit in (first(project), project.head, project.train(6)):
        promoted(project, commit)
    gone = [rollback(project.path, "vae", message="m").version.version for _ in range(2)]
    assert gone == ["v1.1.0", "v1.0.0"]
    with pytest.raises(UserError, match=r"^vae: no version was in prod before v1\.0\.0; `python -m pipeline registry"):
        rollback(project.path, "vae", message="m")
    assert rollback(project.path, "vae", message="m", to="1.2.0").version.version == "v1.2.0"
    with pytest.raises(UserError, match=r"^vae: v3 was never in prod; there were v1\.0\.0, v1\.1\.0, v1\.2\.0; `reg"):
        rollback(project.path, "vae", message="m", to="v3")
    with pytest.raises(UserError, match=r"^cvae: no version is in prod; `python -m pipeline registry promote cvae`$"):
        rollback(project.path, "cvae", message="m")


def test_dvc_sees_the_last_of_many_assignments_made_in_one_second(project: RegistryProject) -> None:
    promoted(project, "HEAD~1")
    promoted(project, "HEAD")
    for back in ("v1.0.0", "v1.1.0") * 5:
        rollback(project.path, "vae", message="m", to=back)
    with Repo(str(project.path)) as repo:
        assert "vae#prod#12" in project.tags()
        assert repo.artifacts.get_rev("vae", stage="prod") == project.head
    assert rollback(project.path, "vae", message="m", to="v1.0.0").tags == ("vae#prod#13",)
    with Repo(str(project.path)) as repo:
        assert repo.artifacts.get_rev("vae", stage="prod") == first(project)


def test_what_was_taken_back_with_gto_is_taken_back_here(project: RegistryProject) -> None:
    def later() -> None:
        """Wait for a second of its own: GTO orders tags by that, and promotions in one second are dated ahead."""
        time.sleep(max(0.0, History.of(project.path, "vae").next_date() - time.time()))

    promoted(project, "HEAD~1")
    promoted(project, "HEAD")
    later()
    gto.api.unassign(project.path, "vae", version="v1.1.0", stage="prod")
    found = champion(project.path, "vae")
    assert found is not None
    assert found.version == "v1.0.0"
    later()
    gto.api.deregister(project.path, "vae", version="v1.1.0")
    assert [version.version for version in History.of(project.path, "vae").versions] == ["v1.0.0"]
    assert History.of(project.path, "vae").next_version("minor") == "v1.2.0"
    later()
    gto.api.deprecate(project.path, "vae")
    assert (champion(project.path, "vae"), History.of(project.path, "vae").versions) == (None, ())


def test_tags_of_other_families_and_of_people_are_no_versions(project: RegistryProject) -> None:
    promote(project.path, "cvae", "HEAD", message="m")
    project.tiny.git("tag", "vae@v9.0.0")  # without a message, which GTO leaves out too
    project.tiny.git("tag", "-a", "-m", "m", "vae-note")
    assert (champion(project.path, "vae"), History.of(project.path, "vae").versions) == (None, ())
    with pytest.raises(UserError, match=r"^wake_sleep: [0-9a-f]{10} holds no artifacts/wake_sleep in its dvc\.lock; "):
        promote(project.path, "wake_sleep", "HEAD", message="m")


def change_params(project: RegistryProject) -> None:
    project.set("models.vae.latent_dim", 9)


def change_code(project: RegistryProject) -> None:
    with (project.path / "export.sh").open("a") as file:
        file.write("# other\n")


def change_input(project: RegistryProject) -> None:
    (project.path / "images" / "all").write_text("others\n")


def change_command(project: RegistryProject) -> None:
    path = project.path / "dvc.yaml"
    path.write_text(path.read_text().replace("sh export.sh", "sh ./export.sh"))


def change_figures(project: RegistryProject) -> None:
    (project.path / "results" / "evaluate" / "vae.json").write_text("{}")


def retrain_the_shards_alone(project: RegistryProject) -> None:
    change_input(project)
    project.dvc("repro", "-q", "shard")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_params, r"stage export@vae: params\.yaml: .*models\.vae"),
        (change_code, r"stage export@vae: export\.sh"),
        (change_input, r"stage shard: images"),
        (change_command, r"stage export@vae: its command"),
        (change_figures, r"stage (evaluate|export)@vae: results/evaluate/vae\.json"),
        (retrain_the_shards_alone, r"stage (evaluate|export)@vae: data/shards"),
    ],
)  # fmt: skip
def test_a_lock_that_is_not_of_its_code_and_parameters_is_refused(
    project: RegistryProject, change: Callable[[RegistryProject], None], what: str
) -> None:
    change(project)
    project.tiny.commit("not run")
    with pytest.raises(UserError, match=rf"^vae: dvc\.lock of [0-9a-f]{{10}} is not that of its code .*\({what}"):
        promoted(project, "HEAD")
    assert project.tags() == []


def test_a_change_that_no_stage_of_the_family_reads_is_no_reason(project: RegistryProject) -> None:
    project.set("models.cvae.latent_dim", 9)
    project.set("compute.workers", 2)
    project.tiny.commit("of others")
    check_current(project.path, artifact_in(project.path, "vae", project.head))
    assert promoted(project, "HEAD").tags == FIRST


def test_a_model_that_nobody_could_get_is_refused(project: RegistryProject) -> None:
    shutil.rmtree(project.path / ".dvc" / "cache")
    message = r"^vae: the files of artifacts/vae in [0-9a-f]{10} are not in the cache or the DVC remote; get them"
    with pytest.raises(UserError, match=message):
        promoted(project, "HEAD")
    assert promoted(project, "HEAD~1").tags == FIRST  # the remote has that one
    project.dvc("remote", "remove", "store")
    with pytest.raises(UserError, match=r"are not in the cache; get them \(`dvc fetch`\), or make them again"):
        promoted(project, "HEAD")


def test_a_part_of_a_model_is_no_model(project: RegistryProject) -> None:
    made = artifact_in(project.path, "vae", project.head)
    with Repo(str(project.path)) as repo:
        store = repo.cache.local
        for path in sorted(Path(store.path).rglob("*")):
            if path.is_file() and path.read_bytes() == project.model()["model.safetensors"]:
                path.chmod(0o600)
                path.unlink()
    assert not where(project.path, made).cached


def test_a_push_brings_the_files_to_the_dvc_remote_before_the_tags(project: RegistryProject) -> None:
    made = artifact_in(project.path, "vae", project.head)
    assert where(project.path, made).remote is False
    shutil.rmtree(project.folder / "remote")
    (project.folder / "remote").write_text("no folder\n")
    with pytest.raises(StorageFailed, match=r"^DVC remote store: "):
        promoted(project, "HEAD", "origin")
    assert project.tags() == project.tags(project.origin) == []
    (project.folder / "remote").unlink()
    promoted(project, "HEAD", "origin")
    assert where(project.path, made).remote is True


def test_without_a_dvc_remote_nothing_is_pushed(project: RegistryProject) -> None:
    project.dvc("remote", "remove", "store")
    with pytest.raises(UserError, match=r"^no DVC remote to push the model to; `dvc remote add -d NAME URL`"):
        promoted(project, "HEAD", "origin")
    assert project.tags(project.origin) == []


def test_of_two_who_promote_one_is_refused_and_nothing_is_half_done(project: RegistryProject) -> None:
    project.tiny.git("clone", "-q", str(project.origin), "../other")
    promoted(project, "HEAD~1", "origin")
    other = project.folder / "other"
    for key, value in (("user.name", "B"), ("user.email", "b@example.org")):
        project.tiny.run("git", "-C", str(other), "config", key, value)
    before = project.tags(project.origin)
    with pytest.raises(UserError, match=r"^origin has newer tags; `git fetch --tags origin`.*nothing was"):
        promote(other, "vae", "HEAD", message="m", push_to="origin")
    assert (project.tags(other), project.tags(project.origin)) == ([], before)
    project.tiny.run("git", "-C", str(other), "fetch", "-q", "--tags")
    assert promote(other, "vae", "HEAD", message="m", push_to="origin").tags == ()  # it is what is there


def test_both_tags_are_made_or_none(project: RegistryProject) -> None:
    lock = project.path / ".git" / "refs" / "tags" / "vae#prod#1.lock"
    lock.touch()
    with pytest.raises(UserError, match=r"^cannot make vae@v1\.0\.0 and vae#prod#1 .*; nothing was changed"):
        promoted(project, "HEAD")
    assert project.tags() == []
    lock.unlink()
    assert promoted(project, "HEAD").tags == FIRST


def test_an_origin_that_is_gone_changes_nothing(project: RegistryProject) -> None:
    shutil.rmtree(project.origin)
    with pytest.raises(UserError, match=r"^cannot push to origin .*; nothing was changed$"):
        promoted(project, "HEAD", "origin")
    assert project.tags() == []


def test_an_origin_that_refuses_says_why_and_nothing_is_changed(project: RegistryProject) -> None:
    hook = project.origin / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != "refs/tags/vae#prod#1" ]\n')
    hook.chmod(0o755)
    with pytest.raises(UserError, match=r"^cannot push to origin .*hook declined.*; nothing was changed$"):
        promoted(project, "HEAD", "origin")
    assert project.tags() == project.tags(project.origin) == []


@pytest.mark.parametrize("character", "\u2028\x85\x0b\x0c\r")
def test_a_message_may_hold_what_ends_lines_elsewhere(project: RegistryProject, character: str) -> None:
    promote(project.path, "vae", "HEAD", message=f"better{character}by far")
    found = champion(project.path, "vae")
    assert found is not None
    assert (found.version, found.message) == ("v1.0.0", f"better{character}by far")


def test_git_must_know_who_tags(project: RegistryProject) -> None:
    project.tiny.git("config", "--unset", "user.email")
    with pytest.raises(UserError, match=r"^Git does not know who you are; set user\.name and user\.email"):
        promoted(project, "HEAD")


def test_the_registry_of_a_bare_repository_is_read_and_rolled_back(project: RegistryProject) -> None:
    at_an_address_that_holds_anywhere(project)
    for key, value in (("user.name", "B"), ("user.email", "b@example.org")):
        project.tiny.git("-C", str(project.origin), "config", key, value)
    project.tiny.git("push", "-q", "origin", "main")
    for commit in ("HEAD~2", "HEAD"):
        promoted(project, commit, "origin")
    assert champion(project.origin, "vae") == champion(project.path, "vae")
    assert rollback(project.origin, "vae", message="m").version.version == "v1.0.0"
    assert "vae#prod#3" in project.tags(project.origin)


def test_a_dry_run_checks_and_changes_nothing(project: RegistryProject) -> None:
    done = promote(project.path, "vae", "HEAD", message="m", push_to="origin", dry_run=True)
    assert (done.tags, done.version.version) == (FIRST, "v1.0.0")
    assert project.tags() == []
    assert where(project.path, artifact_in(project.path, "vae", project.head)).remote is False


def test_the_card_of_a_model_is_read_from_the_remote_too(project: RegistryProject) -> None:
    shutil.rmtree(project.path / ".dvc" / "cache")
    lineage = {"lineage": {"data": "d1", "params": "p1", "code": "c1"}}
    assert config_of(project.path, artifact_in(project.path, "vae", first(project))) == lineage
    assert config_of(project.path, artifact_in(project.path, "vae", project.head)) is None


def test_the_command_tells_what_it_did(
    project: RegistryProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.path)

    def said(*argv: str, code: int = 0) -> list[str]:
        assert main(["registry", *argv]) == code
        out, error = capsys.readouterr()
        return (error if code else out).splitlines()

    head, before = project.head, first(project)
    assert said("ls")[1].split() == ["vae", "-", "-", "-", "-", "-"]
    assert said("show", "vae") == ["vae: no versions; `python -m pipeline registry promote vae` makes the first"]
    would = said("promote", "vae", "--rev", before, "--dry-run")
    assert would[0] == f"would bring vae@v1.0.0 ({before[:10]}) into prod, the first one"
    assert would[1] == f"would make tags {' and '.join(FIRST)}, here"
    assert said("promote", "vae", "--rev", before, "--message", "the first")[0].endswith(
        "is in prod now, the first one"
    )
    assert said("promote", "vae", "--push") == [
        f"vae@v1.1.0 ({head[:10]}) is in prod now, instead of v1.0.0 ({before[:10]})",
        f"made tags {' and '.join(SECOND)}, here and in origin"]  # fmt: skip
    assert said("promote", "vae") == [f"vae@v1.1.0 ({head[:10]}) is in prod already; nothing to do"]
    row = said("ls")[1].split()
    assert (row[:3], row[5:]) == (["vae", "v1.1.0", head[:10]], ["neg_elbo_nats", "12.00", "v1.1.0"])
    shown = "\n".join(said("show", "vae"))
    assert shown.index("vae@v1.1.0  <- prod") < shown.index("vae@v1.0.0\n")
    for text in ("by A. User: the first (vae#prod#1)", f"commit    {before}", "params    p1", "data      d1",
                 "neg_elbo_nats 12.00", "DVC digest"):  # fmt: skip
        assert text in shown
    assert said("rollback", "vae")[0].startswith("vae@v1.0.0 (")
    assert said("promote", "vea", code=1) == [
        "error: vea: no family under `models` in params.yaml; did you mean 'vae'?"]  # fmt: skip
    (project.path / "export.sh").write_text("changed\n")
    assert said("promote", "vae", code=1) == [
        "error: export.sh: changed since HEAD; commit or stash it, or name a commit with --rev"]  # fmt: skip
    assert said("promote", "vae", "--rev", "nowhere", code=1) == [
        "error: nowhere: no commit of this repository; `git fetch` it, or name another"]  # fmt: skip


def test_the_section_artifacts_disturbs_no_run(project: RegistryProject) -> None:
    """One of its models is of no family, so nothing writes it."""
    lock = (project.path / "dvc.lock").read_bytes()
    project.tiny.ran()
    with Repo(str(project.path)) as repo:
        assert repo.status() == {}
    project.dvc("repro", "-q")
    assert project.tiny.ran() == []
    assert (project.path / "dvc.lock").read_bytes() == lock
    text = (project.path / "dvc.yaml").read_text()
    (project.path / "dvc.yaml").write_text(text[: text.index("artifacts:")])
    project.dvc("repro", "-q")
    assert (project.tiny.ran(), (project.path / "dvc.lock").read_bytes()) == ([], lock)
    (project.path / "dvc.yaml").write_text(text)
    project.dvc("exp", "run", "-q", "-n", "other", "-S", "models.vae.latent_dim=7")
    assert project.tiny.ran() == ["export@vae"]
    assert promoted(project, project.tiny.experiments()["other"]).tags == FIRST


def test_a_project_inside_a_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    tiny = TinyProject(tmp_path / "inside", tmp_path / "ran")
    tiny.git("init", "-q", str(tmp_path))
    tiny.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "m")
    with pytest.raises(UserError, match=r"^the project is in inside/ of its repository; the registry needs it at the"):
        promote(tiny.path, "vae", "HEAD", message="m")


def test_every_model_has_a_name_in_the_registry() -> None:
    assert artifact_name("straight_through") == "straight-through"
    found = entries(["vae", "wake_sleep"])
    assert {name: entry["path"] for name, entry in found.items()} == {
        "vae": "artifacts/vae", "wake-sleep": "artifacts/wake_sleep"}  # fmt: skip
    with pytest.raises(UserError, match=r"^params\.yaml: models\.a_b: its name in the registry is that of a-b"):
        entries(["a-b", "a_b"])
    with pytest.raises(UserError, match=r"^params\.yaml: models\.my model: the registry takes names of letters"):
        entries(["my model"])
