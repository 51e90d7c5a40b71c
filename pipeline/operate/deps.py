"""rewrite in dvc.yaml what each stage depends on: modules it imports, parameters it reads, the files of data.source

And the section `artifacts`, where the registry finds the model of each family.

DVC does not look inside Python: a module missing from `deps` would leave a stale result in the cache, and one too many
would run a stage for nothing. Nor does it look into params.yaml: new files below `data.source.path` are seen only when
that path is a dependency.
"""

import ast
import io
import itertools
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import files
from pipeline.closure import PACKAGES, ROOT, closure
from pipeline.config import Params
from pipeline.data.config import DataConfig
from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.registry.names import entries

OUTPUTS = ("data", "models", "artifacts", "report", "results")
UNTRACKED = ("compute", "tune.publish")  # where a stage runs and what it shows, never what it computes


def main(params: Params, args: Namespace) -> None:
    check_paths(source_paths(params.data))
    path = ROOT / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    after = rewrite(before, params)
    if after == before:
        say("dvc.yaml is exact")
    else:
        files.write_text(path, after)
        say("dvc.yaml: rewritten; see `git diff dvc.yaml`")


def rewrite(text: str, params: Params) -> str:
    """dvc.yaml with the dependencies and parameters of every stage as they are, and an artifact for every model."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    for name, stage in content["stages"].items():
        kept = [dep for dep in stage["deps"] if dep.split("/")[0] not in PACKAGES]
        if name == "ingest":
            kept = source_paths(params.data)
        stage["deps"] = sorted(kept) + modules(name)
        stage["params"] = parameters(name)
    content["artifacts"] = entries(params.models)
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def source_paths(data: DataConfig) -> list[str]:
    """Files and folders of the user's that the sources read; of a pattern, the folder before its first wildcard."""
    paths: set[str] = set()
    for source in (data.source, *data.append):
        named = [getattr(source, name, None) for name in ("path", "table")]
        if source.kind == "npy":
            folder = Path(source.path).parent
            others = (source.labels, source.attributes, source.embeddings, source.groups)
            named += [str(folder / other) for other in others if other is not None]
        paths |= {_without_wildcards(path) for path in named if path is not None}
    return sorted(path for path in paths if not any(_within(path, other) for other in paths))


def check_paths(paths: Sequence[str]) -> None:
    """Raise UserError for a path that does not exist, or that holds what the pipeline writes."""
    for path in map(Path, paths):
        if any(Path(out).resolve().is_relative_to(path.resolve()) for out in OUTPUTS):
            raise UserError(f"data.source.path: {path}: the pipeline writes there; name a folder of its own")
        if not path.exists():
            raise UserError(f"data.source.path: {path}: no such file or folder; correct it in params.yaml")


def _without_wildcards(path: str) -> str:
    parts = Path(path).parts
    plain = itertools.takewhile(lambda part: not set(part) & set("*?["), parts)
    return Path(*plain).as_posix()


def _within(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)


def modules(stage: str) -> list[str]:
    """The files of this project that a stage imports."""
    return sorted({*closure("pipeline.__main__"), *closure(f"pipeline.stages.{stage}")})


def parameters(stage: str) -> list[str]:
    """The keys of params.yaml that a stage reads: every `params.…` in its file, `[family]` as DVC's template."""
    tree = ast.parse(Path(ROOT, "pipeline", "stages", f"{stage}.py").read_text(encoding="utf-8"))
    keys = {key for key in _reads(tree) if not any(f"{key}.".startswith(f"{name}.") for name in UNTRACKED)}
    return sorted(key for key in keys if not any(key.startswith(f"{other}.") for other in keys))


def _reads(node: ast.AST) -> Iterator[str]:
    if chain := _chain(node):
        yield ".".join(chain)
        return
    for child in ast.iter_child_nodes(node):
        yield from _reads(child)


def _chain(node: ast.AST) -> list[str]:
    """`params.tune.spaces[family]` -> tune, spaces, ${item.family}; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
        return [node.attr]
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return [*before, node.attr]
    if isinstance(node, ast.Subscript) and (before := _chain(node.value)):
        return [*before, "${item.family}"]
    return []
