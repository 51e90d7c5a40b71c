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
    """Without a cluster: each Ray command knows the options that the README gives it."""
    (block,) = ON_A_CLUSTER
    for line in block.splitlines():
        words = shlex.split(line.strip("()"), comments=True)
        if "ray" not in words:
            continue
        words = words[words.index("ray") : words.index("--") if "--" in words else None]
        name = [
            word
            for word in words[1:4]
            if word in ("up", "down", "dashboard", "job", "submit", "rsync-down", "get-auth-token")
        ]
        help_text = reproduced.run("ray", *name, "--help")
        for option in (word for word in words if word.startswith("--")):
            assert option in help_text, f"ray {' '.join(name)} has no {option}"
