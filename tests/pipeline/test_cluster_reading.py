"""A file of anyone's is read without trust: whatever it holds, the user gets one line."""

from pathlib import Path

import pytest

from pipeline.cluster.reading import read
from pipeline.errors import UserError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x: !!python/object/apply:os.system [touch /tmp/owned]\n", ":1: the tag !!python/object/apply:os.system"),
        ("a: 1\nx: !custom {}\n", ":2: the tag !custom"),
        (LAUGHS, "its aliases unfold to more than 20000 values"),
        (MERGES, ":2: merges (<<) several mappings"),
        ("a: &a [*a]\n", "within itself"),
        ("x: " + "[" * 3000 + "]" * 3000, ":1: nested more than 50 levels deep"),
        ("a: 1\nb: 2\na: 3\n", ":3: not valid YAML: found duplicate key"),
        ("- a\n- b\n", ":1: expected keys such as cluster_name or kind, found list"),
        ("", ":1: expected keys such as cluster_name or kind, found NoneType"),
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("# " + "x" * 300_000, "larger than 64 KiB"),
    ],
    ids=[
        "object",
        "tag",
        "laughs",
        "merges",
        "cycle",
        "deep",
        "twice",
        "list",
        "empty",
        "open",
        "date",
        "bell",
        "huge",
    ],
)
def test_a_malicious_file_gets_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read(path)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there_or_no_text_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: no such file; `python -m pipeline cluster render`"):
        read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(UserError, match=r"latin.yaml/x: cannot be read \(Not a directory\); name a file"):
        read(tmp_path / "latin.yaml" / "x")
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "latin.yaml")


def test_values_are_read_as_ray_reads_them_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b\n  k: yes\nother:\n  <<: *b\n  own: [1, 2]\n")
    doc = read(path)
    assert doc.values["other"] == {"k": True, "own": [1, 2]}  # YAML 1.1, as PyYAML
    places = {(): 1, ("other", "k"): 2, ("other", "own", 1): 5, ("other", "none"): 3}
    assert {at: doc.line(at) for at in places} == places
