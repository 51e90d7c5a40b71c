"""`cluster check`: all that is wrong with a file that describes a cluster, before it is used."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.findings import Document, Problem, Problems, section
from pipeline.cluster.reading import read
from pipeline.errors import did_you_mean

PROVIDERS = ("aws", "local")


@dataclass(frozen=True, slots=True)
class Report:
    """Lines `FILE:LINE: key.path: what; remedy`.

    Attributes:
        wrong: mistakes.
        todo: what the user has to do before the file can be used.
        what: of what kind the file is.
    """

    wrong: tuple[str, ...]
    todo: tuple[str, ...]
    what: str


def check(path: Path, root: Path | None = None) -> Report:
    """Read a file and check it. Nothing is asked over the network.

    Raises:
        UserError: it cannot be read at all.
    """
    doc = read(path, root)
    told = doc.told(_problems(doc))
    wrong, todo = (tuple(line for line, is_todo in told if is_todo is kind) for kind in (False, True))
    return Report(wrong, todo, _what(doc))


def _problems(doc: Document) -> Problems:
    if "kind" in doc.values or "apiVersion" in doc.values:
        from pipeline.cluster.kuberay import kuberay_problems

        yield from kuberay_problems(doc)
        return
    provider = section(doc.values, "provider").get("type")
    if provider not in PROVIDERS:
        text = f"expected {' or '.join(PROVIDERS)}, got {provider!r}{did_you_mean(str(provider), PROVIDERS)}"
        yield Problem(("provider", "type"), text)
        return
    yield from _launched(doc, provider)


def _launched(doc: Document, provider: str) -> Problems:
    from pipeline.cluster.aws import aws_problems
    from pipeline.cluster.launched import launch_problems
    from pipeline.cluster.local import local_problems
    from pipeline.cluster.schema import ray_problems

    found = [*(aws_problems(doc) if provider == "aws" else local_problems(doc)), *launch_problems(doc)]
    yield from found
    told = {problem.at for problem in found} | {problem.at[:1] for problem in found if provider == "local"}
    yield from (problem for problem in ray_problems(doc.values) if problem.at not in told)


def _what(doc: Document) -> str:
    kind = doc.values.get("kind")
    return f"KubeRay {kind}" if kind else f"ray up, provider {section(doc.values, 'provider').get('type')}"
