"""Runs a job. Ends with the command's exit code, and with that of the stage where DVC ran one that failed."""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from .clone import apply_changes, cloned, share_cache
from .job import TERMINATED, Failed, Job, Stopped, say
from .processes import check_tools, end_others, environment, streamed
from .results import deliver

HOME = "VAE_PIPELINE_HOME"  # environment: where clones, mirrors and the cache of all jobs are


def main() -> int:
    here = Path.cwd()
    job = Job(**json.loads((here / "job.json").read_text(encoding="utf-8")))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    try:
        return run(job, here)
    except Failed as error:
        say(f"error: {error}")
        return error.code
    except Stopped:
        end_others()
        say("stopped; what was done is kept, the same submission goes on from there")
        return TERMINATED


def run(job: Job, here: Path) -> int:
    """Everything; the exit code."""
    say(f"{job.id}: commit {job.commit[:12]} of {job.origin}")
    home = Path(os.environ.get(HOME) or Path.home() / "vae-pipeline").absolute()
    folder, env = home / "jobs" / job.id, environment()
    check_tools(env)
    clone = cloned(job, home, folder, env)
    project = clone / job.folder
    apply_changes(job, here, clone, folder, env)
    share_cache(project, home / "cache")
    say(f"runs {shlex.join(job.command)}")
    code = streamed(job.command, project, env)
    if code:
        say(f"the command failed with exit code {code}; {clone} is kept, the same submission goes on from there")
        return code
    deliver(job, project, env)
    shutil.rmtree(clone)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
