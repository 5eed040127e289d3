"""A submitted job is followed by the real client of Ray through a proxy that loses its connections."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import ray
from aiohttp import web

from pipeline.errors import RunFailed, UsageError
from pipeline.submit import ray_jobs
from pipeline.submit.ray_jobs import Jobs

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray gives it to aiohttp
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def cut(request: web.Request) -> web.StreamResponse:
    """A tunnel whose other end is gone: it accepts, and closes."""
    assert request.transport is not None
    request.transport.close()
    await asyncio.sleep(0.02)  # before the answer, which then nobody gets
    return web.Response()


def refused(status: int) -> Answer:
    """A proxy that says so."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="<html>no upstream</html>")

    return answer


def job(status: str) -> Answer:
    """How far the job is."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        known = {"type": "SUBMISSION", "submission_id": "job", "entrypoint": "", "status": status}
        return web.json_response(known | {"driver_exit_code": 3 if status == "FAILED" else None})

    return answer


def log(text: str, *, whole: bool) -> Answer:
    """The log so far; then its end, or that of the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(text)
        await (socket.close() if whole else cut(request))
        return socket

    return answer


def next_of(answers: list[Answer]) -> Answer:
    return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def dashboard(tails: list[Answer], infos: list[Answer]) -> Iterator[str]:
    """One that does with each request for the log, or for the state of the job, as told; the last thing for ever."""

    async def version(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"ray_version": ray.__version__, "version": "4"})

    async def tail(request: web.Request) -> web.StreamResponse:
        return await next_of(tails)(request)

    async def info(request: web.Request) -> web.StreamResponse:
        return await next_of(infos)(request)

    app, found, up = web.Application(), dict[str, Any](), Event()
    app.router.add_get("/api/version", version)
    app.router.add_get("/api/jobs/job/logs/tail", tail)
    app.router.add_get("/api/jobs/job", info)
    app.router.add_get("/api/jobs/", info)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.update(url=f"http://127.0.0.1:{runner.addresses[0][1]}", end=asyncio.Event())
        found["loop"] = asyncio.get_running_loop()
        up.set()
        await found["end"].wait()
        await runner.cleanup()

    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert up.wait(30)
    try:
        yield found["url"]
    finally:
        found["loop"].call_soon_threadsafe(found["end"].set)
        thread.join()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(ray_jobs, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(ray_jobs.tenacity, "wait_exponential", lambda **_: ray_jobs.tenacity.wait_none())


def shown(jobs: Jobs) -> str:
    """The log, as it is followed."""

    async def pieces() -> str:
        return "".join([piece async for piece in jobs.follow("job")])

    return asyncio.run(pieces())


@pytest.mark.parametrize("lost", [cut, refused(502), refused(503), refused(504)], ids=["cut", "502", "503", "504"])
def test_log_is_followed_through_lost_connections(lost: Answer) -> None:
    twice = [lost, lost]  # aiohttp itself tries once more
    tails = [*twice, log("one\ntw", whole=False), *twice, log("one\ntwo\n", whole=True)]
    infos = [lost, job("RUNNING"), *twice, *[job("RUNNING")] * 9, lost, job("FAILED")]
    with dashboard(tails, infos) as url:
        jobs = Jobs(url)
        assert shown(jobs) == "one\ntwo\n"
        assert jobs.wait("job") == 3
    assert (len(tails), len(infos)) == (1, 1)


@pytest.mark.parametrize("lost", [cut, refused(502)], ids=["cut", "502"])
def test_cluster_that_does_not_come_back(lost: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "PATIENCE_SECONDS", 0.2)
    with dashboard([lost], [lost]) as url, pytest.raises(RunFailed, match="has not answered for 0 s; if the job is"):
        shown(Jobs(url))


def test_job_that_the_cluster_does_not_know() -> None:
    with dashboard([refused(404)], [refused(404)]) as url, pytest.raises(RunFailed, match="not know the job job"):
        shown(Jobs(url))


@pytest.mark.parametrize("lost", [cut, refused(502)], ids=["cut", "502"])
def test_jobs_that_cannot_be_listed(lost: Answer, tmp_path: Path) -> None:
    with dashboard([lost], [lost]) as url, pytest.raises(UsageError, match="does not say which jobs it has"):
        Jobs(url).send(tmp_path, "job", {})
