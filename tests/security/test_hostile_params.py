"""params.yaml from strangers: plain values of bounded size, and nothing that must not be in Git."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from strangers import bounded

from pipeline.__main__ import main
from pipeline.addresses import has_credentials, without_credentials
from pipeline.config import load_params
from pipeline.errors import UserError

PARAMS = (Path(__file__).parents[2] / "params.yaml").read_text()
PASSWORD = "correct-horse/battery"


def write(home: Path, text: str) -> Path:
    (home / "params.yaml").write_text(text)
    return home / "params.yaml"


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "apply": '!!python/object/apply:os.system ["touch made"]\n',
    "new": '!!python/object/new:pathlib.Path ["made"]\n',
    "name": "a: !!python/name:os.system\n",
    "module": "a: !!python/module:antigravity\n",
    "object in a section": PARAMS.replace("seed: 0 ", '!!python/object/apply:os.system ["touch made"] : 0 ', 1),
    "billion laughs": laughs(10, 10),
    "wide laughs": laughs(4, 300),
    "laughs in compute": PARAMS + laughs(9, 10),
    "merged laughs": "a: &a {x: 1}\n" + "".join(f"b{n}: {{<<: [{', '.join(['*a'] * 500)}]}}\n" for n in range(5)),
    "contains itself": "a: &a [*a]\n",
    "merges itself": "a: &a {<<: *a}\n",
    "deep": "a: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "deep sections": "a: " + "{a: " * 5_000 + "1" + "}" * 5_000 + "\n",
    "rather deep": "a: " + "[" * 60 + "]" * 60 + "\n",
    "same key twice": "data: {}\ndata: {}\n",
    "huge integer": f"a: {'9' * 10_000}\n",
    "huge hexadecimal": f"a: 0x{'f' * 10_000}\n",
    "huge float": f"a: 1e{'9' * 10_000}\n",
    "impossible date": "a: 2024-99-99\n",
    "impossible time": "a: 2024-01-01T99:99:99Z\n",
    "bytes": "a: !!binary '%%%'\n",
    "list as key": "? [a, b]\n: 1\n",
    "section as key": "? {a: b}\n: 1\n",
    "set": "a: !!set {x, y}\n",
    "omap": "!!omap [a: 1]\n",
    "unknown tag": "a: !anything {b: 1}\n",
    "directive": "%YAML 9.9\n---\na: 1\n",
    "terminal": 'a: "\\e[2J"\n"\\e[2J": 1\n',
    "infinite": "a: .inf\nb: .nan\n",
    "many documents": "a: 1\n---\nb: 1\n",
    "not a section": "compute: [1]\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_an_error_and_nothing_else(home: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(home, HOSTILE[case])
    with bounded(150, 10):
        assert main(["summary"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: params.yaml")
    assert all(line.startswith("error: params.yaml") for line in printed.splitlines())
    assert all(line.isprintable() for line in printed.splitlines())
    assert len(printed) < 20_000
    assert sorted(path.name for path in home.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("s3://key:secret@bucket/x", True),
        ("S3://key@bucket", True),
        ("https://user:pass@example.org/x", True),
        (f"s3://AKIA:{PASSWORD}@bucket/x", True),
        ("simplecache::s3://key:secret@bucket/x", True),
        ("ray://user@host:10001", True),
        ("https://[::1]:secret@host/x", True),
        ("s3://bucket/user@example.org/x", False),
        ("http://127.0.0.1:9000/x", False),
        ("http://[::1]:9000/x", False),
        ("file:///home/me@work/x", False),
        ("data/a:b@c", False),
        ("VAE: http://example.org", False),
    ],
)
def test_credentials_are_found_where_addresses_have_them(address: str, found: bool) -> None:
    assert has_credentials(address) is found
    shown = without_credentials(address)
    assert (shown == address) is not found
    assert not re.search(r"secret|pass|AKIA|correct|battery", shown) or not found


ADDRESSES = (
    "compute.storage",
    "compute.shards",
    "compute.address",
    "compute.cache",
    "data.source.path",
    "report.title",
)


def test_addresses_with_passwords_are_refused_and_not_shown(home: Path) -> None:
    values = YAML(typ="safe").load(PARAMS)
    for key in ADDRESSES:
        section, _, name = key.rpartition(".")
        node = values["data"]["source"] if section == "data.source" else values[section]
        node[name] = f"s3://AKIA:{PASSWORD}@bucket/x"
    values["compute"]["storrage"] = 1  # another mistake, whose message could show what is beside it
    with pytest.raises(UserError) as error:
        load_params(write(home, json.dumps(values)))
    lines = str(error.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(ADDRESSES)
    for line in lines:
        assert re.search(r"params\.yaml:\d+: [a-z.]+: expected an address without user or password", line)
        assert "AWS_SECRET_ACCESS_KEY" in line
        assert "~/.aws" in line
        assert "battery" not in line
        assert "AKIA" not in line


@pytest.mark.parametrize(
    "text", [json.dumps({"storage": f"s3://AKIA:{PASSWORD}@bucket/x"}), f"storage=s3://AKIA:{PASSWORD}@bucket/x"]
)
def test_nor_in_the_environment(home: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_COMPUTE", text)
    with pytest.raises(UserError, match=r"^PIPELINE_COMPUTE: [^\n]*expected [^\n]*$") as error:
        load_params(write(home, PARAMS))
    assert "battery" not in str(error.value)


def test_a_family_cannot_name_a_folder_elsewhere(home: Path) -> None:
    names = ["../../x", "/x", "a/b", "..", ".hidden", "", "a\nb", "$(touch made)", "-rf", "fine_1.0-b"]
    values = YAML(typ="safe").load(PARAMS)
    values["families"] = names
    values["models"] = dict.fromkeys(names, values["models"]["vae"])
    values["tune"]["spaces"] = {name: {} for name in names}
    with pytest.raises(UserError) as error:
        load_params(write(home, json.dumps(values)))
    lines = str(error.value).splitlines()
    assert len(lines) == len(names) - 1
    assert all(f"families.{n}: expected letters, digits" in line for n, line in enumerate(lines))
