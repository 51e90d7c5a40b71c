"""rewrite the modules and parameters of each stage in dvc.yaml from what the stage imports and reads

DVC does not look inside Python: a module missing from `deps` would leave a stale result in the cache, and one too many
would run a stage for nothing.
"""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import files
from pipeline.closure import PACKAGES, ROOT, closure
from pipeline.config import Params
from pipeline.progress import say

UNTRACKED = "compute"  # where a stage runs, never what it computes


def main(params: Params, family: str | None) -> None:
    path = ROOT / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    after = rewrite(before)
    if after == before:
        say("dvc.yaml is exact")
    else:
        files.write_text(path, after)
        say("dvc.yaml: rewritten; see `git diff dvc.yaml`")


def rewrite(text: str) -> str:
    """dvc.yaml with the code dependencies and parameters of every stage as they are."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    for name, stage in content["stages"].items():
        kept = [dep for dep in stage["deps"] if dep.split("/")[0] not in PACKAGES]
        stage["deps"] = sorted(kept) + modules(name)
        stage["params"] = parameters(name)
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def modules(stage: str) -> list[str]:
    """The files of this project that a stage imports."""
    return sorted({*closure("pipeline.__main__"), *closure(f"pipeline.stages.{stage}")})


def parameters(stage: str) -> list[str]:
    """The keys of params.yaml that a stage reads: every `params.…` in its file, `[family]` as DVC's template."""
    tree = ast.parse(Path(ROOT, "pipeline", "stages", f"{stage}.py").read_text(encoding="utf-8"))
    keys = {key for key in _reads(tree) if key.split(".")[0] != UNTRACKED}
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
