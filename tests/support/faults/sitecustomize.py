"""Faults inside whole runs, without a hook in the product.

Python imports a `sitecustomize` that it finds on PYTHONPATH when it starts. With this folder on it, and FAULT_PLAN
naming a plan that `Faults` wrote, every process of a run (the driver, Ray's workers, the children of
`pipeline.isolation`) watches its own imports and wraps the named points of our modules right after they were loaded.

    point                       where
    opened                      an attempt made its TarReader
    first_batch                 an attempt gave its first batch to the device
    before_write, written       around PartWriter.finish
    before_publish, published   around commit
    publishing                  a part is whole under a temporary name, its own name is not made yet (local disks)
    before_report               the end of Worker.tokenize: the part is there, the driver does not know
    before NAME, after NAME     in the driver: around Storage.write or put of manifest.parquet, ..., _SUCCESS
    before claim, after claim   in the driver: around Output.claim
    sample                      an image was found in a sample, here or in an isolated child

Every firing is counted once, across processes, by a file that is created with O_EXCL before the fault acts.
"""

import ctypes
import errno
import fnmatch
import functools
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOREVER = 10**6  # seconds
CHUNK_BYTES = 32 << 20

_here = threading.local()  # the attempt that this thread works on: `shard` (its id) and `batches` (given to the device)


def _kill(_amount: float) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segv(_amount: float) -> None:
    """A real invalid read in C. No core is written."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _hang(_amount: float) -> None:
    """A call that never returns; other threads go on."""
    threading.Event().wait(FOREVER)


def _freeze(_amount: float) -> None:
    """A call that never returns and keeps the interpreter's lock: no other Python thread goes on."""
    ctypes.PyDLL(None).sleep(FOREVER)


def _devour(amount: float) -> None:
    """Take memory without end, until the process may have no more.

    What ends it is real but not the kernel's choice: where an address space limit is set (the isolated child), malloc
    fails and a MemoryError is raised. Where none is (an actor), the process kills itself with the signal of the
    kernel's out-of-memory killer once it has taken `amount` bytes, so that the machine under the test lives on.
    """
    taken = []
    while len(taken) * CHUNK_BYTES < amount:
        taken.append(b"x" * CHUNK_BYTES)  # written to, so resident
    _kill(0)


def _full(_amount: float) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS: dict[str, Callable[[float], None]] = {
    "kill": _kill,
    "segv": _segv,
    "hang": _hang,
    "freeze": _freeze,
    "devour": _devour,
    "full": _full,
    "sleep": time.sleep,
}


@functools.cache
def _plan() -> dict[str, Any]:
    """The plan as it is when this process first imports a module of ours; a process keeps the plan it began with."""
    return json.loads(Path(os.environ["FAULT_PLAN"]).read_text())


def _reach(point: str, payload: bytes = b"") -> None:
    """A point was reached: act on what is planned there."""
    shard = getattr(_here, "shard", "")
    for fault in _plan()["faults"]:
        if fault["point"] != point or not fnmatch.fnmatch(shard, fault["shard"]):
            continue
        if fault["marker"].encode() not in payload:
            continue
        if _count(fault):
            ACTIONS[fault["action"]](fault["amount"])


def _count(fault: dict[str, Any]) -> bool:
    """Whether the fault may fire once more; if so it is counted."""
    for n in range(fault["times"]):
        try:
            with open(Path(_plan()["fired"], f"{fault['name']}.{n}"), "x") as file:
                file.write(f"{getattr(_here, 'shard', '')} {os.getpid()}")
        except FileExistsError:
            continue
        return True
    return False


def _around(owner: Any, name: str, before: str | None = None, after: str | None = None) -> None:
    """Wrap `owner.name`: `before` is reached when it is called, `after` when it has returned."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        if before:
            _reach(before)
        result = inner(*args, **kwargs)
        if after:
            _reach(after)
        return result

    setattr(owner, name, outer)


def _patch_attempt(module: ModuleType) -> None:
    tokenize = module.tokenize_shard

    def known(shard: Any, *args: Any, **kwargs: Any) -> Any:
        _here.shard, _here.batches = shard.id, 0
        return tokenize(shard, *args, **kwargs)

    module.tokenize_shard = known
    _around(module, "commit", before="before_publish", after="published")


def _patch_feed(module: ModuleType) -> None:
    _around(module, "TarReader", after="opened")


def _patch_writer(module: ModuleType) -> None:
    _around(module.PartWriter, "finish", before="before_write", after="written")


def _patch_engine(module: ModuleType) -> None:
    submit = module.Engine.submit

    def counted(engine: Any, images: Any) -> Any:
        future = submit(engine, images)
        _here.batches = getattr(_here, "batches", 0) + 1
        if _here.batches == 1:
            _reach("first_batch")
        return future

    module.Engine.submit = counted


def _patch_worker(module: ModuleType) -> None:
    _around(module.Worker, "tokenize", after="before_report")


def _patch_storage(module: ModuleType) -> None:
    link = os.link

    def linked(source: Any, target: Any, **kwargs: Any) -> None:
        _reach("publishing")
        link(source, target, **kwargs)

    for method in ("write", "put"):
        _name_what_is_written(module.Storage, method)
    os.link = linked


def _name_what_is_written(storage: Any, method: str) -> None:
    inner = getattr(storage, method)

    def named(self: Any, url: str, content: Any) -> None:
        name = url.rpartition("/")[2]
        _reach(f"before {name}")
        inner(self, url, content)
        _reach(f"after {name}")

    setattr(storage, method, named)


def _patch_output(module: ModuleType) -> None:
    _around(module.Output, "claim", before="before claim", after="after claim")


def _patch_members(module: ModuleType) -> None:
    find = module.find_image

    def stretched(members: Any) -> Any:
        found = find(members)
        time.sleep(_plan()["stretch"])
        if isinstance(found, bytes):
            _reach("sample", found)
        return found

    module.find_image = stretched


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "pipeline.tokenize_shard": _patch_attempt,
    "pipeline.feed": _patch_feed,
    "pipeline.tokens.writer": _patch_writer,
    "pipeline.engine.engine": _patch_engine,
    "pipeline.worker": _patch_worker,
    "pipeline.storage": _patch_storage,
    "pipeline.output": _patch_output,
    "pipeline.images.members": _patch_members,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules of PATCHES as Python does, and patches them as soon as they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in PATCHES else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "FAULT_PLAN" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
