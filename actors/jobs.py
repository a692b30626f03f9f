"""Jobs on a Ray cluster, through the API that `ray job` uses: submit, follow, stop, and how one has ended."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from symoe_ray.core import InputError, ResourceError

ADDRESS = "http://127.0.0.1:8265"
STAYS_HERE = ("/data/", "/runs/", ".venv/", ".git/", "__pycache__/")
"""What is never uploaded with a working directory, beside what its .gitignore and .rayignore name."""
STOP_WAIT_S = 120
PATIENCE_S = 60.0
POLL_S = 0.5
_ARGUMENTS = "symoe_arguments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job has ended: Ray's word for it, and the exit code of its process where Ray knows one."""

    state: str
    exit_code: int | None
    message: str
    started: float


class Jobs:
    """The job server of a cluster. ResourceError where it does not answer or refuses the token."""

    def __init__(self, address: str = "") -> None:
        from ray.job_submission import JobSubmissionClient

        if address:  # else Ray would prefer what $RAY_ADDRESS says
            os.environ["RAY_API_SERVER_ADDRESS"] = address
        with _translated():
            self._client = JobSubmissionClient(ADDRESS)

    def submit(
        self, name: str, arguments: Sequence[str], *, python: str, working_dir: str, environment: Mapping[str, str]
    ) -> None:
        """Upload a working directory and run `symoe ARGUMENTS` in it as the job `name`."""
        runtime_env = {
            "working_dir": working_dir,
            "excludes": list(STAYS_HERE),
            # of the process that ends the job: by default it kills what has not ended after 3 s
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **environment},
        }
        with _translated():
            self._client.submit_job(
                entrypoint="exec " + shlex.join([python, "-m", "pipelines", *arguments]), submission_id=name,
                runtime_env=runtime_env, metadata={_ARGUMENTS: json.dumps(list(arguments))},
            )  # fmt: skip

    def arguments_of(self, name: str) -> list[str]:
        """What a job was submitted with; InputError where `symoe submit` did not submit it."""
        metadata = self._info(name).metadata or {}
        if _ARGUMENTS not in metadata:
            raise InputError(f"job {name} was not submitted by `symoe submit`")
        return [str(word) for word in json.loads(metadata[_ARGUMENTS])]

    def follow(self, name: str, write: Callable[[str], object]) -> None:
        """Write what a job says, from its beginning until it has ended, also across lost connections."""
        log, lost_at = _Log(write), 0.0
        while True:
            try:
                asyncio.run(log.tail(self._client, name))
                if self._has_ended(name):
                    return
                lost_at = 0.0
            except (RuntimeError, OSError) as error:  # what Ray's client and aiohttp raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > PATIENCE_S:
                    raise ResourceError(f"job {name} can no longer be followed: {error}") from error
            time.sleep(POLL_S)

    def stop(self, name: str) -> None:
        """Have a job terminated and wait for its end: it is given `STOP_WAIT_S` to write what it has, then killed."""
        with _translated():
            self._client.stop_job(name)
        while not self._has_ended(name):
            time.sleep(POLL_S)

    def ended(self, name: str) -> Ended:
        """How a job has ended."""
        info = self._info(name)
        code = info.driver_exit_code
        return Ended(
            state=str(info.status), exit_code=128 - code if code is not None and code < 0 else code,
            message=info.message or "", started=(info.start_time or 0) / 1000,
        )  # fmt: skip

    def _info(self, name: str) -> Any:
        with _translated():
            return self._client.get_job_info(name)

    def _has_ended(self, name: str) -> bool:
        return bool(self._info(name).status.is_terminal())


class _Log:
    """Writes a job's log; a connection after the first one does not repeat what was written."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._written = write, 0

    async def tail(self, client: Any, name: str) -> None:
        come = 0
        async for text in client.tail_job_logs(name):
            if new := text[max(0, self._written - come) :]:
                self._write(new)
            come += len(text)
            self._written = max(self._written, come)


@contextmanager
def _translated() -> Iterator[None]:
    """What Ray's job client raises, as one of our own errors."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except AuthenticationError as error:
        raise ResourceError(f"the Ray cluster at {_where()} refuses: {_line(error)}") from error
    except (ConnectionError, RayError) as error:
        raise ResourceError(f"no Ray job server answers at {_where()}: {_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        name = f"the Ray job server at {_where()}: {type(error).__name__}"
        wrong = isinstance(error, ValueError) or "does not exist" in str(error) or "already exists" in str(error)
        raise (InputError if wrong else ResourceError)(f"{name}: {_line(error)}") from error


def _where() -> str:
    """The address that Ray's job client takes, and what it takes it from."""
    if address := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return f"{address} (--address or RAY_API_SERVER_ADDRESS)"
    if address := os.environ.get("RAY_ADDRESS"):
        return f"{address} (environment variable RAY_ADDRESS)"
    return f"{ADDRESS} (name another with --address)"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
