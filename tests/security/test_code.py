"""What no line of the code does: unpickle, run text, leave a door open. Exceptions are listed, each with its reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("pipeline", "vae_core") for path in (ROOT / package).rglob("*.py"))

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle",
           "yaml"}  # whose `load` makes objects; ruamel.yaml is what this project reads with  # fmt: skip
FORBIDDEN = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "runs text",
    "__import__": "imports what a value names",
    "os.system": "runs text in a shell",
    "os.popen": "runs text in a shell",
    "subprocess.getoutput": "runs text in a shell",
    "subprocess.getstatusoutput": "runs text in a shell",
    "tempfile.mktemp": "a name that another may take first",
    "os.tempnam": "a name that another may take first",
    "torch.hub.load": "runs code from the network",
    "urllib.request.urlopen": "has no limit of time by default and opens file:// too",
    "urllib.request.urlretrieve": "has no limit of time and opens file:// too",
    "importlib.import_module": "imports what a value names",
    "ssl._create_unverified_context": "trusts anyone",
    "random.seed": "a global generator",
    "hashlib.md5": "can be forged",
    "hashlib.sha1": "can be forged",
    "onnx.load": "follows external data",
}
SUBPROCESS = {"run", "Popen", "call", "check_call", "check_output"}
REQUESTS = {"get", "post", "put", "delete", "head", "patch", "request"}
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|xox[abp]-\w{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|"
    r"://[^/\s:@{}$]+:[^/\s@{}$]+@|(?i:password|passwd|secret|api_?key|token)\s*=\s*[\"'][^\"'\s{}$]{8,}[\"']"
)

EXCEPTIONS = {
    ("pipeline/evaluate/inception.py", "imports pickle"): "for the name of the error that weights_only=True raises",
    ("pipeline/evaluate/inception.py", "importlib.import_module"): "a constant name, of a package that may be missing",
    ("pipeline/__main__.py", "importlib.import_module"): "a name from the list of files in this package",
    ("pipeline/data/__init__.py", "importlib.import_module"): "a constant name, of what is slow to import",
    ("pipeline/data/sources/packages.py", "extractall"): "of a zip, whose names Python keeps below the folder",
    ("pipeline/operate/upload.py", "hashlib.md5"): "a store's ETag is one; readers decide by sha256",
    ("pipeline/export/artifacts.py", "autoescape"): "Markdown, whose names go through `literal`",
    ("pipeline/cluster/render.py", "autoescape"): "YAML, of the recipe's values and of options that its user gave",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` for such an expression, `.c` where it is an attribute of something else, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line, and what is there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, f"imports {name}") for name in names if name.split(".")[0] in PICKLES)
            yield from ((node.lineno, name) for name in names if name in FORBIDDEN)
        if isinstance(node, ast.Call):
            yield from ((node.lineno, problem) for problem in calls(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SECRET.search(node.value):
            yield node.lineno, "a secret"


def calls(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    last = name.rpartition(".")[2]
    if name in FORBIDDEN:
        yield name
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and not is_constant(given.get("allow_pickle"), False):
        yield "np.load without allow_pickle=False"
    if name in ("np.save", "numpy.save") and not is_constant(given.get("allow_pickle"), False):
        yield "np.save without allow_pickle=False"
    if (
        name == "YAML"
        and not any(is_constant(value, kind) for value in given.values() for kind in ("rt", "safe"))
        and given
    ):
        yield "YAML of a type that makes objects"
    if "shell" in given and not is_constant(given["shell"], False):
        yield "shell=True"
    if "verify" in given and is_constant(given["verify"], False):
        yield "verify=False"
    if last == "extractall" and "filter" not in given:
        yield "extractall"
    if name.startswith("subprocess.") and last in SUBPROCESS and node.args and is_text(node.args[0]):
        yield "subprocess with a text instead of a list"
    if name.startswith("requests.") and last in REQUESTS and "timeout" not in given:
        yield "requests without timeout"
    if last == "Environment" and "loader" in given and not is_constant(given.get("autoescape"), True):
        yield "autoescape"


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value and type(node.value) is type(value)


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_the_code_does_none_of_it() -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        for line, what in findings(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault((name, what), []).append(line)
    assert {key: lines for key, lines in found.items() if key not in EXCEPTIONS} == {}
    assert len(FILES) > 150


def test_every_exception_is_still_needed() -> None:
    for name, what in EXCEPTIONS:
        found = [there for _, there in findings(ast.parse((ROOT / name).read_text(encoding="utf-8")))]
        assert what in found, (name, what)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import os.path, cloudpickle as c", "imports cloudpickle"),
        ("torch.load(x)", "torch.load without weights_only=True"),
        ("torch.load(x, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.load(x, weights_only=safe)", "torch.load without weights_only=True"),
        ("np.load(x)", "np.load without allow_pickle=False"),
        ("np.load(x, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("YAML(typ='unsafe').load(x)", "YAML of a type that makes objects"),
        ("import yaml", "imports yaml"),
        ("importlib.import_module(x)", "importlib.import_module"),
        ("eval(x)", "eval"),
        ("subprocess.run(x, shell=True)", "shell=True"),
        ("subprocess.run(f'rm {x}')", "subprocess with a text instead of a list"),
        ("tempfile.mktemp()", "tempfile.mktemp"),
        ("requests.get(x)", "requests without timeout"),
        ("requests.get(x, timeout=3, verify=False)", "verify=False"),
        ("tar.extractall(x)", "extractall"),
        ("x = 's3://key:secret@bucket'", "a secret"),
        ("x = 'AKIAIOSFODNN7EXAMPLE'", "a secret"),
        ("Environment(loader=x)", "autoescape"),
    ],
)
def test_each_of_it_is_found(code: str, what: str) -> None:
    assert what in [there for _, there in findings(ast.parse(code))]


@pytest.mark.parametrize(
    "code",
    ["torch.load(x, weights_only=True)", "np.load(x, allow_pickle=False)", "YAML(typ='safe').load(x)", "YAML()",
     "subprocess.run(['rm', x], timeout=3)", "requests.get(x, timeout=3)", "tar.extractall(x, filter='data')",
     "model.eval()", "re.compile(x)", "x = 's3://bucket/x'"],
)  # fmt: skip
def test_nothing_else_is(code: str) -> None:
    assert list(findings(ast.parse(code))) == []


def test_no_file_of_the_project_holds_a_secret() -> None:
    texts = [path for path in ROOT.glob("*.*") if path.suffix in (".yaml", ".yml", ".toml", ".md", ".txt", ".lock")]
    texts += [ROOT / ".dvc" / "config", *(ROOT / ".github").rglob("*.yml"), *(ROOT / "deploy").rglob("*.y*ml")]
    for path in texts:
        found = SECRET.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found and found[0]}"
    assert len(texts) > 5


def test_what_holds_secrets_is_in_no_commit() -> None:
    ignored = (ROOT / ".gitignore").read_text().split() + (ROOT / ".dvc" / ".gitignore").read_text().split()
    assert {".env", "/config.local"} <= set(ignored)
    assert ".env" in (ROOT / ".dvcignore").read_text().split()
