"""A promotion is finished from its journal, by whoever comes next, wherever the one before was killed."""

from pathlib import Path

import pytest
from promoting import NAME, SHIM, TAGS, Promoting

from pipeline.errors import UserError
from pipeline.retrain.origin import check_branch, check_push, listed
from pipeline.retrain.promotion import JOURNAL, KEPT, GivenUp, finish


@pytest.fixture
def promoting(tmp_path: Path) -> Promoting:
    return Promoting.make(tmp_path)


def expected(promoting: Promoting) -> dict[str, object]:
    return {
        "head": promoting.new, "branch": "refs/heads/main", "tags": sorted(TAGS), "status": "",
        "origin": promoting.new, "tags of origin": sorted(TAGS),
    }  # fmt: skip


def test_branch_and_tags_are_here_and_at_origin_and_nothing_else_is_left(promoting: Promoting) -> None:
    said = promoting.finish()
    assert f"{NAME}: {', '.join(TAGS)}; main is at commit {promoting.new[:10]}, pushed to origin" in said
    assert promoting.state() == expected(promoting)
    assert promoting.project.git("for-each-ref", KEPT) == ""
    assert not (promoting.project.path / JOURNAL).exists()
    assert "None" in promoting.finish()


def test_killed_before_or_after_any_step_the_next_one_finishes_it(promoting: Promoting, tmp_path: Path) -> None:
    """Of the commands that change a repository: the push, the tags, the merge, what is tidied."""
    shim = tmp_path / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    before = promoting.state()
    steps = ["before 1", *(f"after {step}" for step in range(1, 5))]
    for step in steps:
        assert promoting.finish_killed(shim, step)
        state = promoting.state()
        assert state["tags"] in ([], sorted(TAGS)), "some of the tags"
        assert state["tags of origin"] in ([], sorted(TAGS))
        assert (state["origin"] == promoting.new) is (state["tags of origin"] != []), "a branch without its tags"
        assert state["status"] == ""
        finish(promoting.project.path)
        assert promoting.state() == expected(promoting)
        back_to(promoting, before)
    assert not promoting.finish_killed(shim, "before 5"), "there is one step more than those"


def back_to(promoting: Promoting, before: dict[str, object]) -> None:
    """As it was before the promotion, the journal included."""
    git = promoting.project.git
    git("reset", "-q", "--hard", promoting.old)
    for tag, sha in promoting.tags.items():
        git("update-ref", "-d", f"refs/tags/{tag}")
        git("update-ref", f"{KEPT}/tags/{tag}", sha)
        git("--git-dir", str(promoting.origin), "update-ref", "-d", f"refs/tags/{tag}")
    git("--git-dir", str(promoting.origin), "update-ref", "refs/heads/main", promoting.old)
    promoting.write_journal()
    assert promoting.state() == before


def test_a_checkout_that_changed_meanwhile_is_left_alone_and_the_commit_gets_a_branch(promoting: Promoting) -> None:
    (promoting.project.path / "params.yaml").write_text("families: []\n")
    said = promoting.finish()
    assert f"the checkout has changed meanwhile, so commit {promoting.new[:10]} is on the branch retrain/{NAME}" in said
    state = promoting.state()
    assert (state["head"], state["status"], state["origin"]) == (promoting.old, "M params.yaml", promoting.new)
    assert promoting.project.git("rev-parse", f"retrain/{NAME}") == promoting.new
    assert state["tags"] == sorted(TAGS)


def test_a_file_in_the_way_is_not_written_over(promoting: Promoting) -> None:
    (promoting.project.path / "results.json").write_text("mine\n")
    assert "is on the branch" in promoting.finish()
    assert (promoting.project.path / "results.json").read_text() == "mine\n"


def test_when_origin_has_moved_on_nothing_is_promoted_anywhere(promoting: Promoting, tmp_path: Path) -> None:
    git = promoting.project.git
    git("clone", "-q", str(promoting.origin), str(tmp_path / "other"))
    who = ("-c", "user.name=another", "-c", "user.email=another@example.org")
    git("-C", str(tmp_path / "other"), *who, "commit", "-q", "--allow-empty", "-m", "another's")
    git("-C", str(tmp_path / "other"), "push", "-q")
    before = promoting.state()
    with pytest.raises(UserError, match="origin has newer commits or tags; nothing was changed; `git pull`"):
        finish(promoting.project.path)
    assert promoting.state() == before
    assert not (promoting.project.path / JOURNAL).exists()
    with pytest.raises(UserError, match="origin/main has commits that are not here"):
        check_push(promoting.project.path, listed(promoting.project.path), "main", promoting.old)


def test_when_origin_protects_the_branch_the_promotion_is_given_up(promoting: Promoting) -> None:
    hook = promoting.origin / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != refs/heads/main ]\n')
    hook.chmod(0o755)
    before = promoting.state()
    with pytest.raises(GivenUp, match=r"does not take branch and tags \(.*hook declined\).*propose .* with --branch$"):
        finish(promoting.project.path)
    assert promoting.state() == before
    assert finish(promoting.project.path) is None


@pytest.mark.parametrize("push", [True, False])
def test_when_a_tag_of_the_name_was_made_here_meanwhile_the_promotion_is_given_up(
    promoting: Promoting, push: bool
) -> None:
    promoting.write_journal(push=push)
    promoting.project.git("tag", "-a", "-m", "rolled back", "vae#prod#1", promoting.old)
    before = promoting.state()
    with pytest.raises(
        GivenUp, match=r"^vae#prod#1 was made here meanwhile; nothing was changed; run the same command"
    ):
        finish(promoting.project.path)
    assert promoting.state() == before
    assert finish(promoting.project.path) is None


def test_when_that_was_after_the_push_the_tags_of_origin_are_asked_for(promoting: Promoting) -> None:
    git = promoting.project.git
    sent = [f"{sha}:refs/tags/{tag}" for tag, sha in promoting.tags.items()]
    git("push", "-q", "origin", f"{promoting.new}:refs/heads/main", *sent)
    git("tag", "-a", "-m", "rolled back", "vae#prod#1", promoting.old)
    with pytest.raises(GivenUp, match="here vae#prod#1 is another tag; `git fetch --tags --force origin`, and `git pu"):
        finish(promoting.project.path)
    git("fetch", "-q", "--tags", "--force", "origin")
    git("pull", "-q", "--ff-only", "origin", "main")
    assert promoting.state() == expected(promoting)
    assert finish(promoting.project.path) is None


def test_a_branch_that_has_another_proposal_is_told_before_anything_is_trained(promoting: Promoting) -> None:
    home, git = promoting.project.path, promoting.project.git

    def check(experiment: str) -> None:
        check_branch(home, listed(home), "nightly", promoting.old, experiment)

    check("refs/exps/none")
    git("push", "-q", "origin", f"{promoting.old}:refs/heads/nightly")
    check("refs/exps/none")  # what is there is in HEAD
    git("push", "-q", "origin", f"{promoting.new}:refs/heads/nightly")
    check(promoting.new)  # the same night again
    for other in ("refs/exps/none", promoting.old):
        with pytest.raises(
            UserError, match=r"^--branch: nightly at origin has other commits; merge or delete it there"
        ):
            check(other)


def test_when_origin_does_not_answer_the_promotion_waits_for_the_next_time(promoting: Promoting) -> None:
    away = promoting.origin.rename(promoting.origin.with_name("away"))
    with pytest.raises(UserError):
        finish(promoting.project.path)
    assert promoting.project.git("tag", "--list") == ""
    away.rename(promoting.origin)
    promoting.finish()
    assert promoting.state() == expected(promoting)


def test_tags_that_are_not_here_are_asked_for_before_anything_is_trained(promoting: Promoting, tmp_path: Path) -> None:
    home, git = promoting.project.path, promoting.project.git
    check_push(home, listed(home), "main", promoting.old)
    git("--git-dir", str(promoting.origin), "tag", "vae@v0.9.0", "main")
    with pytest.raises(UserError, match=r"origin has tags that are not here \(refs/tags/vae@v0.9.0\); `git fetch"):
        check_push(home, listed(home), "main", promoting.old)
    with pytest.raises(UserError, match="--push: no branch is checked out"):
        check_push(home, listed(home), None, promoting.old)


def test_without_a_push_origin_is_left_alone(promoting: Promoting) -> None:
    promoting.write_journal(push=False)
    assert "others see it after `git push` of both and `dvc push`" in promoting.finish()
    state = promoting.state()
    assert (state["head"], state["origin"], state["tags of origin"]) == (promoting.new, promoting.old, [])
