"""The cluster's job service, with errors that say what to do."""

import logging
import os
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from pipeline.errors import ClusterFailed, UserError
from pipeline.files import parse_json
from pipeline.jobs.access import ADDRESS, Access
from pipeline.jobs.spec import PREFIX, Job
from pipeline.token import COPY

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENTRYPOINT = "exec python -m head"  # exec: Ray's signals reach it, and its exit code is Ray's
ANSWER_S = 10.0
SETTLED_S = 3.0  # until Ray no longer watches a job that ended: it would take a new one of its id for that
STOPPED_S = 90.0
READY_S, NOT_READY = 60.0, "No available agent"  # a head that has just started answers before it takes jobs
TALKATIVE = (  # they tell of each file and connection
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
OTHER = f"name its address with --address or {ADDRESS}"
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Record:
    """What Ray knows of a job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        code: exit code, where it ended by itself.
        message: Ray's, about a job that it could not run.
        started, ended: seconds of the epoch, by the head's clock.
        metadata: what was told of it when it was submitted.
    """

    id: str
    status: str
    code: int | None
    message: str
    started: float | None
    ended: float | None
    command: str
    metadata: dict[str, str]

    @classmethod
    def of(cls, details: Any) -> "Record":
        code, metadata = details.driver_exit_code, dict(details.metadata or {})
        return cls(
            id=details.submission_id,
            status=str(details.status),
            code=128 - code if code is not None and code < 0 else code,
            message=(details.message or "").strip().split("\n")[0],
            started=details.start_time and details.start_time / 1000,
            ended=details.end_time and details.end_time / 1000,
            command=metadata.get("command", details.entrypoint),
            metadata=metadata,
        )

    @property
    def is_over(self) -> bool:
        return self.status in OVER


def chosen(records: Sequence[Record], beginning: str) -> Record:
    """The one job whose id begins so, with or without what all begin with, or ends so.

    Raises:
        UserError: there is none, or several.
    """
    found = [
        record
        for record in records
        if record.id.startswith((beginning, PREFIX + beginning)) or record.id.endswith(f"-{beginning}")
    ]
    exact = [record for record in found if record.id == beginning]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise UserError(f"{beginning}: no job's id begins so; see: python -m pipeline jobs ls")
    raise UserError(f"{beginning}: {len(found)} jobs begin so: {', '.join(record.id for record in found)}")


class Cluster:
    """A cluster that answered, and accepted the token."""

    client: "JobSubmissionClient"

    def __init__(self, access: Access) -> None:
        """Raises ClusterFailed, in one line, where it does not."""
        self.access = access
        ray_version(access)
        _bypass_proxy(access.address)
        from ray.job_submission import JobSubmissionClient

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {access.token}"}
        verify = os.environ.get("SSL_CERT_FILE") or True
        with self._answering():
            self.client = JobSubmissionClient(access.address, headers=headers, verify=verify)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what Ray makes of any other answer than that all went well
            told = str(error).strip().splitlines()[-1]
            raise ClusterFailed(f"{self.access.address}: Ray's job service failed ({told}); see its log") from None
        except OSError as error:  # of requests too
            raise ClusterFailed(
                f"{self.access.address}: the cluster no longer answers ({type(error).__name__}); "
                "is the tunnel open? its jobs run on"
            ) from None

    def records(self) -> list[Record]:
        """All jobs that were submitted, newest first."""
        with self._answering():
            found = [Record.of(details) for details in self.client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda record: record.started or 0, reverse=True)

    def record(self, id: str) -> Record | None:
        return next((record for record in self.records() if record.id == id), None)

    def send(self, job: Job) -> bool:
        """Submit it; False: somebody else did so a moment ago."""
        end = time.monotonic() + READY_S
        with tempfile.TemporaryDirectory() as folder, self._answering():
            job.write(Path(folder))
            while True:
                try:
                    self.client.submit_job(
                        entrypoint=ENTRYPOINT,
                        submission_id=job.id,
                        metadata=job.metadata,
                        runtime_env={"working_dir": folder, "env_vars": job.environment},
                    )
                    return True
                except RuntimeError as error:
                    if "already exists" in str(error):
                        return False
                    if NOT_READY not in str(error) or time.monotonic() > end:
                        raise
                    time.sleep(1)

    def forget(self, id: str) -> None:
        """Delete the record of a job that is over."""
        with self._answering():
            time.sleep(SETTLED_S)
            self.client.delete_job(id)

    def stop(self, id: str) -> Record:
        """Stop it, and wait until it is over.

        Raises:
            ClusterFailed: it is not, after much longer than jobs are given.
        """
        end = time.monotonic() + STOPPED_S
        with self._answering():
            self.client.stop_job(id)
            while time.monotonic() < end:
                record = self.record(id)
                if record is None or record.is_over:
                    break
                time.sleep(0.5)
        if record is None or not record.is_over:
            raise ClusterFailed(f"{id}: still not over {STOPPED_S:.0f} s after it was stopped; see the head")
        return record

    def log(self, id: str) -> str:
        with self._answering():
            return str(self.client.get_job_logs(id))

    def tail(self, id: str) -> AsyncIterator[str]:
        tailed: AsyncIterator[str] = self.client.tail_job_logs(id)
        return tailed

    def option(self) -> str:
        """For commands that the user is told of: how they reach this cluster too."""
        usual = Access.of(None, plain_http=True).address == self.access.address
        return "" if usual else f" --address {shlex.quote(self.access.address)}"


def ray_version(access: Access) -> str:
    """What answers there, if it accepts the token. Quickly: Ray's client waits without end.

    Raises:
        ClusterFailed: nothing does, or something else, or it accepts any token or not this one.
    """
    if _get(access, "/api/authentication_mode").get("authentication_mode") != "token":
        raise ClusterFailed(
            f"{access.address}: this cluster asks for no token, so whoever reaches it can run anything on it; "
            "start it with RAY_AUTH_MODE=token"
        )
    return str(_get(access, "/api/version").get("ray_version"))


def _get(access: Access, path: str) -> dict[str, Any]:
    address = access.address
    request = Request(address + path, headers={"Authorization": f"Bearer {access.token}"})
    opener = build_opener(ProxyHandler({})) if _is_near(address) else build_opener()
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            found = parse_json(answer.read())
        if not isinstance(found, dict):
            raise ValueError("a value of JSON that is no object")
        return found
    except HTTPError as error:
        if error.code in {401, 403}:
            raise ClusterFailed(f"{address}: the cluster refuses the token (HTTP {error.code}); {COPY}") from None
        raise ClusterFailed(
            f"{address}: answers {path} with HTTP {error.code}, so it is not Ray's dashboard; {OTHER}"
        ) from None
    except ValueError as error:
        raise ClusterFailed(f"{address}: what answers {path} is not Ray's dashboard ({error}); {OTHER}") from None
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip()
        raise ClusterFailed(
            f"{address}: no Ray cluster answers ({reason}); start it (`ray up cluster.yaml`) and open the tunnel "
            f"(`ray dashboard cluster.yaml`), or {OTHER}"
        ) from None


def _is_near(address: str) -> bool:
    return (urlsplit(address).hostname or "") in {"127.0.0.1", "::1", "localhost"}


def _bypass_proxy(address: str) -> None:
    """The token must not pass through a proxy on the way to this very machine."""
    if _is_near(address):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost,::1")))
