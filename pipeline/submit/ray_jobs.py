"""`tokenmill run` as a Ray job: sent to a cluster, followed, found again. It speaks Ray's jobs API, over HTTP.

A job is named by its contents. Sent again while it is at work, it is found and followed; sent again after its end, it
runs anew as the next attempt, and does what OUTPUT still lacks. Whoever loses the connection loses nothing.
"""

import logging
import re
import shlex
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import tenacity
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import RunFailed, UsageError

WAIT_SECONDS = 2.0  # between two looks at a job
START_SECONDS = 300.0  # a cluster that has just begun answers before it can take jobs
PATIENCE_SECONDS = 600.0  # a head that does not answer for so long is given up; the job itself is not
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY|CONNECTION_STRING|SAS", re.IGNORECASE)
# Not under the TOKENMILL_ variables of whoever started the cluster: they would win over job.yaml, which is resolved.
COMMAND = "unset ${!TOKENMILL_@}; exec python -m jobs run job.yaml --json"
_AWAY = "Request failed with status code 50[234]:"  # Ray's words for a proxy that does not reach the cluster
CODE = ("pipeline", "jobs")  # the packages that `upload_code` sends


@dataclass(frozen=True, slots=True)
class Sent:
    """A job on a cluster.

    Attributes:
        id: its submission id.
        found: it was at work already, and nothing was sent.
    """

    id: str
    found: bool


class Jobs:
    """The jobs API of one Ray cluster. With RAY_AUTH_MODE=token (read when Ray is imported) it needs a token.

    Args:
        address: URL of the cluster's dashboard (`http://127.0.0.1:8265`, the end of a tunnel).

    Raises:
        UsageError: nobody answers there, or not to us.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"--address must be the URL of the cluster's dashboard, as http://127.0.0.1:8265, got {address}"
            )
        self._address = address
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # else it tells of every package that it sends
        try:
            self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise UsageError(
                f"{address}: the cluster was not asked, or refused us: {_first_sentence(error)}; put the cluster's "
                "token into ~/.ray/auth_token or RAY_AUTH_TOKEN (RAY_AUTH_MODE=disabled for a cluster without)"
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise UsageError(f"{address}: no Ray dashboard answers there: {error}") from error

    def send(self, folder: Path, name: str, environment: Mapping[str, str], *, upload_code: bool = False) -> Sent:
        """Send a job, unless it is at work already.

        Args:
            folder: of `job_folder.write_job`; it becomes the job's working directory.
            name: of the job.
            environment: variables of the job; the dashboard shows them.
            upload_code: send this installation's code along, for nodes that have another.

        Raises:
            UsageError: the cluster refuses it.
        """
        try:
            earlier = self._attempts(name)
        except (RuntimeError, OSError) as error:
            raise UsageError(f"{self._address}: the cluster does not say which jobs it has: {error}") from error
        for job in earlier:
            if not job.status.is_terminal():
                return Sent(str(job.submission_id), found=True)
        runtime: dict[str, Any] = {"working_dir": str(folder), "env_vars": dict(environment)}
        if upload_code:
            top = Path(__file__).parent.parent
            runtime["py_modules"] = [str(top / package) for package in CODE]
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_message(match="(?s).*No available agent"),
            wait=tenacity.wait_fixed(WAIT_SECONDS),
            stop=tenacity.stop_after_delay(START_SECONDS),
            reraise=True,
        )
        try:
            sent = again(
                self._client.submit_job,
                entrypoint=shlex.join(["bash", "-c", COMMAND]),
                runtime_env=runtime,
                submission_id=f"{name}-{len(earlier) + 1}",
            )
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{self._address}: the cluster refuses the job: {error}") from error
        return Sent(str(sent), found=False)

    async def follow(self, job: str) -> AsyncIterator[str]:
        """The job's log from its first line to its last, in pieces, across lost connections.

        Raises:
            RunFailed: the cluster is gone for `PATIENCE_SECONDS`, or does not know the job any more.
        """
        shown = 0
        while True:
            passed = 0
            try:
                async for piece in self._client.tail_job_logs(job):
                    passed += len(piece)
                    if fresh := piece[max(0, len(piece) - max(0, passed - shown)) :]:
                        shown += len(fresh)
                        yield fresh
            except (RuntimeError, OSError, aiohttp.ClientError):  # a proxy or a tunnel cut it; the log begins anew
                self.status(job)
            if self.status(job).is_terminal():
                return
            time.sleep(WAIT_SECONDS)

    def wait(self, job: str) -> int:
        """Wait for the job's end; the exit code of its `tokenmill run`.

        Raises:
            RunFailed: the cluster is gone for `PATIENCE_SECONDS`, or does not know the job any more.
        """
        while not self.status(job).is_terminal():
            time.sleep(WAIT_SECONDS)
        info = self._info(job)
        if info.status is JobStatus.STOPPED:
            return 4
        if info.driver_exit_code is None:
            raise RunFailed(f"{job}: {info.message or info.status}; the same command sends it again, and it resumes")
        return int(info.driver_exit_code)

    def status(self, job: str) -> JobStatus:
        """How far the job is."""
        return self._info(job).status

    def _info(self, job: str) -> JobDetails:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OSError)  # among them requests' ConnectionError
            | tenacity.retry_if_exception_message(match=_AWAY),
            wait=tenacity.wait_exponential(max=30),
            stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        )
        try:
            return again(self._client.get_job_info, job)
        except tenacity.RetryError as error:
            raise RunFailed(
                f"{self._address} has not answered for {PATIENCE_SECONDS:.0f} s; if the job is still at work, the same "
                "command follows it, else resumes it"
            ) from error
        except RuntimeError as error:
            raise RunFailed(
                f"{self._address} does not know the job {job} any more: {error}; the same command sends it again, and "
                "it resumes"
            ) from error

    def _attempts(self, name: str) -> list[JobDetails]:
        return [job for job in self._client.list_jobs() if (job.submission_id or "").startswith(f"{name}-")]


def chosen_environment(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job is to have.

    Raises:
        UsageError: one is not set, or looks like a credential: whoever may look at the cluster would see it.
    """
    names = list(names)
    if missing := [name for name in names if name not in environment]:
        raise UsageError(f"--env {missing[0]}: this variable is not set here; the job gets the value that it has here")
    if secret := [name for name in names if SECRET_NAME.search(name)]:
        raise UsageError(
            f"--env {secret[0]} looks like a credential, which the cluster's dashboard would show; give the nodes a "
            "role (infra/iam, workload identity), or put it into their own environment"
        )
    return {name: environment[name] for name in names}


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")
