"""One Ray for the many runs of a test session: a run that starts its own spends a third of its CPU time on that."""

import atexit
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from tempfile import TemporaryDirectory

from tests.support.servers import free_ports


@cache
def shared_ray() -> Mapping[str, str]:
    """Start Ray on loopback, to the end of this process.

    Returns:
        The variables with which `tokenmill` joins it.
    """
    [port] = free_ports(1)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    folder = TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={len(os.sched_getaffinity(0))}",
        "--include-dashboard=false",
    ]
    command += [f"--object-store-memory={100 << 20}", f"--temp-dir={folder.name}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENMILL_")}
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept | access)
    assert head.stdout is not None
    said = ""
    while "Ray runtime started" not in said:
        line = head.stdout.readline()
        assert line, f"Ray ended:\n{said}"
        said += line

    def end() -> None:
        head.terminate()
        head.wait()
        folder.cleanup()

    atexit.register(end)
    return access | {"TOKENMILL_CLUSTER__ADDRESS": f"127.0.0.1:{port}"}
