"""Trainers of sweeps without Ray: trials train in this process, one after the other."""

from collections.abc import Sequence

from pipeline.tune.trial import Job, carry_out


class Here:
    """Knows what it did; dies after a number of jobs. It never races."""

    def __init__(self, dies_after: int = 1000) -> None:
        self.done: list[tuple[str, int]] = []
        self.left = dies_after

    def advance(self, jobs: Sequence[Job], *, what: str) -> None:
        for job in jobs:
            if self.left == 0:
                raise KeyboardInterrupt
            self.carry_out(job)
            self.left -= 1
            self.done.append((job.name, job.stops[-1]))

    def carry_out(self, job: Job) -> None:
        carry_out(job, report=lambda stop, figures: None)

    def race(self, jobs: Sequence[Job], *, figure: str, mode: str, what: str) -> dict[str, int]:
        raise NotImplementedError


class Racing(Here):
    """Races in which nobody is stopped."""

    def race(self, jobs: Sequence[Job], *, figure: str, mode: str, what: str) -> dict[str, int]:
        self.advance(jobs, what=what)
        return {job.name: job.stops[-1] for job in jobs}
