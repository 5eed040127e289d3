"""Decoding behind a wall: each sample in a child process, so that one which kills or hangs costs only itself.

Used for careful attempts alone, at shards that took an actor's process with them. The child is a plain interpreter
that answers over a pipe; when it dies, hangs or runs out of memory, the sample becomes a reject (`decode`, `crashed`)
and the next one gets a new child. What a child needs for itself it has loaded before it takes the first sample.
"""

import ctypes
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.errors import Filtered, Reject, Stage
from pipeline.images import Draw, ImageConfig, Prepared, configure_pillow, find_image, prepare_wanted, resampler
from pipeline.select import SelectConfig

CRASHED = "crashed"
READY = "ready"
START_SECONDS = 60.0  # of the child: imports, on a busy machine


Outcome = Prepared | Reject | Filtered


def prepare_sample(
    key: str, members: Mapping[str, bytes], image: ImageConfig, seed: int = 0, select: SelectConfig | None = None
) -> Outcome:
    """The views of a sample's image, in this process.

    Args:
        key: of the sample.
        members: content by extension.
        image: recipe and limits.
        seed: of random recipes.
        select: sizes that are not wanted; None: all are.
    """
    data = find_image(members)
    if isinstance(data, Reject):
        return data
    return prepare_wanted(data, image, Draw(seed, key), (select or SelectConfig()).size_rule)


class IsolatedDecoder:
    """Prepares samples one at a time in a child process. Thread-safe.

    Args:
        image, seed, select: see `prepare_sample`.
        seconds: a sample that takes longer is rejected.
        memory_bytes: address space that the child may take on top of what it starts with.

    Raises:
        OSError: on a call, if no child can be started; no sample is blamed for that.
    """

    def __init__(self, image: ImageConfig, seed: int, select: SelectConfig, seconds: float, memory_bytes: int) -> None:
        self._how, self._seconds, self._memory_bytes = (image, seed, select), seconds, memory_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __call__(self, key: str, members: Mapping[str, bytes]) -> Outcome:
        """The sample's views, or why there are none."""
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send((key, dict(members), *self._how))
                if not pipe.poll(self._seconds):
                    return self._bury(f"no answer within {self._seconds:g} s")
                answer: Outcome = pipe.recv()
            except (EOFError, OSError):
                return self._bury(None)
            return answer

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with closing(theirs):
            command = [sys.executable, "-m", "pipeline.isolation", str(theirs.fileno()), str(self._memory_bytes)]
            self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603 - our own module
        self._pipe = ours
        try:
            ours.send(self._how[0].decode)
            ready = ours.poll(START_SECONDS) and ours.recv() == READY
        except (EOFError, OSError):
            ready = False
        if not ready:
            raise OSError(f"the decoding process does not start (exit code {self._end()}); is pipeline importable?")
        return ours

    def _bury(self, why: str | None) -> Reject:
        code = self._end()
        if why is None:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            why = f"the decoding process died ({name})"
        return Reject(Stage.DECODE, CRASHED, why)

    def _end(self) -> int:
        if self._child is None or self._pipe is None:
            return 0
        self._pipe.close()  # a healthy child ends by itself now
        try:
            code = self._child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._child = self._pipe = None
        return code


def main(handle: int, memory_bytes: int) -> None:
    """The child: answer until the other side closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    _die_with_parent()
    configure_pillow()
    pipe = Connection(handle)
    resampler(pipe.recv())  # with it comes torch, if the mode needs it
    most = _address_space() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    pipe.send(READY)
    while True:
        try:
            sample = pipe.recv()
        except EOFError:
            return
        pipe.send(prepare_sample(*sample))


def _address_space() -> int:
    """What this process takes now (bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _die_with_parent() -> None:
    """On Linux, ask for a SIGKILL when the actor dies: a child that hangs would not notice the closed pipe."""
    pr_set_pdeathsig = 1
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
