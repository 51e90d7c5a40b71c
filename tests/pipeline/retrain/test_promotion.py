"""A promotion is finished from its journal, by whoever comes next, wherever the one before was killed."""

from pathlib import Path

import pytest
from promoting import NAME, SHIM, TAGS, Promoting

from pipeline.errors import UserError
from pipeline.retrain.promotion import JOURNAL, KEPT, check_origin, finish


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
        check_origin(promoting.project.path, "main", promoting.old)


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
    check_origin(home, "main", promoting.old)
    git("--git-dir", str(promoting.origin), "tag", "vae@v0.9.0", "main")
    with pytest.raises(UserError, match=r"origin has tags that are not here \(refs/tags/vae@v0.9.0\); `git fetch"):
        check_origin(home, "main", promoting.old)
    with pytest.raises(UserError, match="--push: no branch is checked out"):
        check_origin(home, None, promoting.old)


def test_without_a_push_origin_is_left_alone(promoting: Promoting) -> None:
    promoting.write_journal(push=False)
    assert "pushed" not in promoting.finish()
    state = promoting.state()
    assert (state["head"], state["origin"], state["tags of origin"]) == (promoting.new, promoting.old, [])
