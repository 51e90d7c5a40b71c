"""dvc.lock in parts: the same content as DVC writes, and a replaced entry in its old place."""

from collections import OrderedDict
from pathlib import Path

from dvc.utils.serialize import dump_yaml, load_yaml

from pipeline.tune.lock import Lock

CONTENT = {
    "schema": "2.0",
    "stages": {
        "shard": {
            "cmd": "python -m pipeline shard",
            "outs": [{"path": "data/shards", "hash": "md5", "md5": "0" * 32 + ".dir", "size": 7, "nfiles": 2}],
        },
        "train@vae": {
            "cmd": ["echo 'a: b' # c", "x" * 200],
            "deps": [{"path": "data/shards", "hash": "md5", "md5": "1" * 32, "size": 7, "isexec": True}],
            "params": {"params.yaml": {"train": {"rate": 1e-5, "name": "null", "list": [1, "2"], "none": None}}},
        },
        "report": {"cmd": "python -m pipeline report", "outs": []},
    },
}


def test_written_as_dvc_writes_it(tmp_path: Path) -> None:
    dump_yaml(str(tmp_path / "dvc.lock"), CONTENT)
    Lock.read(tmp_path / "dvc.lock").write(tmp_path / "again")
    assert load_yaml(str(tmp_path / "again")) == CONTENT
    assert (tmp_path / "again").read_bytes() == (tmp_path / "dvc.lock").read_bytes()


def test_an_entry_in_the_form_that_dvc_gives_is_a_mapping(tmp_path: Path) -> None:
    entry = OrderedDict(cmd="true", outs=[OrderedDict(path="a", md5="b")])
    Lock({"schema": "2.0"}, {"train@vae": entry}).write(tmp_path / "dvc.lock")
    dump_yaml(str(tmp_path / "expected"), {"schema": "2.0", "stages": {"train@vae": entry}})
    assert (tmp_path / "dvc.lock").read_bytes() == (tmp_path / "expected").read_bytes()


def test_an_entry_is_replaced_where_it_is_and_a_new_one_is_added(tmp_path: Path) -> None:
    lock = Lock({"schema": "2.0"}, CONTENT["stages"])  # type: ignore[arg-type]
    other, new = {"cmd": "true"}, {"cmd": "false"}
    lock.write(tmp_path / "dvc.lock", {"train@vae": other, "new": new})
    read = load_yaml(str(tmp_path / "dvc.lock"))["stages"]
    assert list(read) == ["shard", "train@vae", "report", "new"]
    assert (read["train@vae"], read["new"], read["report"]) == (other, new, CONTENT["stages"]["report"])  # type: ignore[index]


def test_what_stages_made_is_found_by_its_path() -> None:
    made = Lock({}, CONTENT["stages"]).made  # type: ignore[arg-type]
    assert made == {"data/shards": CONTENT["stages"]["shard"]["outs"][0]}  # type: ignore[index]


def test_none_where_there_is_no_file(tmp_path: Path) -> None:
    assert Lock.read(tmp_path / "dvc.lock") == Lock({}, {})
