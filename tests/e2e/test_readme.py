"""Every command of the README does what a reader expects."""

import re
import shlex

from e2e_project import ROOT, Project

README = (ROOT / "README.md").read_text()
ON_A_CLUSTER = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def test_the_commands_run_one_after_another(reproduced: Project) -> None:
    """`make repro` has run in the fixture, `make test` is what runs this; an experiment is made on a small family."""
    for command in commands():
        if command.startswith("make "):
            assert command.split()[1] + ":" in (ROOT / "Makefile").read_text()
            continue
        small = command.replace("--family vae", "--family cvae").replace("models.vae.", "models.cvae.")
        reproduced.run(
            "bash", "-c", f"source .venv/bin/activate 2>/dev/null; {small}" if "source" not in small else "true"
        )
    reproduced.run("git", "checkout", "-q", ".")
    reproduced.run("git", "clean", "-qfd")
    reproduced.run("dvc", "checkout", "-q")


def test_the_python_examples_run_as_they_stand(reproduced: Project) -> None:
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        printed = reproduced.run("python", "-W", "error", "-c", example + "\nprint(images.shape)")
        assert "torch.Size" in printed


def test_cluster_commands_name_things_that_exist(reproduced: Project) -> None:
    """Without a cluster: each command knows the options that the README gives it."""
    for line in (line for block in ON_A_CLUSTER for line in block.splitlines()):
        words = shlex.split(line.strip("()"), comments=True)
        given = words[: words.index("--")] if "--" in words else words
        options = {word for word in given if word.startswith("--")}
        if "ray" in words:
            start = words.index("ray")
            name = [word for word in words[start : start + 2] if not word.startswith("-")]
        elif words[0] in {"python", "dvc"}:
            stop = next((at for at, word in enumerate(words) if word.startswith("--") or "." in word), len(words))
            name = words[: min(stop, 5 if words[0] == "python" else 3)]
        else:
            continue
        help_text = help_of(reproduced, name)
        assert not (missing := {option for option in options if option not in help_text}), f"{line}: {missing}"


def help_of(project: Project, name: list[str]) -> str:
    """What the longest beginning of these words that is a command says of itself."""
    return project.run("bash", "-c", f"source .venv/bin/activate; {shlex.join(name)} --help")
