"""A Ray cluster of several hosts on one machine, whose links can be cut and whose raylets can be killed.

Where the machine allows it (root, iproute2), each host is a network namespace with two links: one to the switch of the
cluster, one to the switch of the store, so that a host can lose the cluster and still reach the store. Elsewhere the
hosts are raylets on loopback, and one is cut off by stopping its raylet (SIGSTOP), which its actors survive as well.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.commands import actors_of, environment, wait_until
from tests.support.servers import Host, free_ports

HEAD, STORE, WORKERS, SPARE = "head", "store", ("worker-1", "worker-2"), "worker-3"
START_SECONDS = 60
# A host that cannot be reached is given up after about 4 s instead of 64.
NOTICE_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}


class Hosts:
    """A head without a place for actors, and two workers with a place for one each: raylets on loopback.

    Attributes:
        address: of the cluster.
        store: the host of the store's server.
        environment: of every process that joins the cluster.
    """

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            **NOTICE_SOON,
            **env,
        }
        self.store = Host(self.store_address(), tuple(self.prefix(STORE)))
        self._nodes: dict[str, subprocess.Popen[str]] = {}
        self._cut: set[str] = set()
        self._port = free_ports(1)[0]
        self.address = f"{self.address_of(HEAD)}:{self._port}"

    @property
    def head(self) -> subprocess.Popen[str]:
        """`ray start` of the head."""
        return self._nodes[HEAD]

    def address_of(self, _host: str) -> str:
        """Where the cluster finds the host."""
        return "127.0.0.1"

    def store_address(self) -> str:
        """Where every host finds the store."""
        return "127.0.0.1"

    def prefix(self, _host: str) -> list[str]:
        """What stands before a command that is to run on the host."""
        return []

    def cut(self, host: str) -> None:
        """Take the host away from the cluster; its actors still reach the store."""
        self._cut.add(host)
        self._raylet(host).suspend()

    def heal(self, host: str) -> None:
        """Undo the cut."""
        self._raylet(host).resume()

    def start(self, *hosts: str) -> None:
        """Start Ray on the hosts, all at once; they join the cluster."""
        for host in hosts:
            self._launch(host)
        for host in hosts:
            log = self.folder / f"{host}.log"
            wait_until(lambda log=log: "Ray runtime started" in log.read_text(), self._nodes[host], START_SECONDS)

    def kill_raylet(self, host: str) -> None:
        """SIGKILL the host's raylet; `ray start` and the actors there end with it."""
        actors = self.actors_on(host)
        self._raylet(host).kill()
        self._nodes[host].wait(timeout=START_SECONDS)
        assert not psutil.wait_procs(actors, timeout=START_SECONDS)[1]

    def kill_head(self) -> None:
        """SIGKILL all of Ray on the head, its memory of the cluster included."""
        self._end(HEAD)

    def mend(self) -> None:
        """Heal the links, and start Ray again where it has ended or was given up."""
        for host in self._cut:
            self.heal(host)
            self._end(host)
        self._cut.clear()
        if self.head.poll() is not None:  # who had joined it ends, too
            for host in WORKERS:
                self._end(host)
            self.start(HEAD)
        self.start(*(host for host in WORKERS if self._nodes[host].poll() is not None))

    def actors(self) -> list[psutil.Process]:
        """The actors on all hosts."""
        return [actor for host in self._nodes for actor in self.actors_on(host)]

    def actors_on(self, host: str) -> list[psutil.Process]:
        """The actors on one host whose Ray still runs."""
        return actors_of(self._nodes[host]) if self._nodes[host].poll() is None else []

    def stop(self) -> None:
        """End every process of the cluster."""
        for host in self._nodes:
            self._end(host)

    def _end(self, host: str) -> None:
        node = self._nodes[host]
        family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        node.kill()
        for process in family:
            process.kill()
        node.wait()
        psutil.wait_procs(family, timeout=START_SECONDS)

    def _launch(self, host: str) -> None:
        command = [*self.prefix(host), sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += [f"--node-ip-address={self.address_of(host)}", f"--temp-dir={self.folder / host}"]
        command += [f"--object-store-memory={100 << 20}"]
        if host == HEAD:
            command += ["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"]
        else:
            command += [f"--address={self.address}", "--num-cpus=1"]
        with (self.folder / f"{host}.log").open("w") as log:
            self._nodes[host] = subprocess.Popen(
                command, stdout=log, stderr=log, text=True, env=environment(**self.environment), start_new_session=True
            )

    def _raylet(self, host: str) -> psutil.Process:
        family = psutil.Process(self._nodes[host].pid).children(recursive=True)
        return next(child for child in family if child.name() == "raylet")


class Namespaces(Hosts):
    """Each host in a network namespace with two links. Nothing is added to the machine's own namespace."""

    _names = (STORE, HEAD, *WORKERS, SPARE)

    def __init__(self, folder: Path, **env: str) -> None:
        self._mark = f"mill-{os.getpid()}"
        _ip("netns", "add", f"{self._mark}-switches")
        for net in ("cluster", "store"):
            self._switches("add", net, "type", "bridge")
            self._switches("set", net, "up")
        for host in self._names:
            _ip("netns", "add", self._netns(host))
            _ip("-n", self._netns(host), "link", "set", "lo", "up")
            self._plug_in(host, "cluster", self.address_of(host))
            self._plug_in(host, "store", self.address_of(host, net=2))
        super().__init__(folder, **env)

    def address_of(self, host: str, net: int = 1) -> str:
        return f"10.77.{net}.{1 + self._names.index(host)}"

    def store_address(self) -> str:
        return self.address_of(STORE, net=2)

    def prefix(self, host: str) -> list[str]:
        return [_IP, "netns", "exec", self._netns(host)]

    def cut(self, host: str) -> None:
        self._cut.add(host)
        self._switches("set", f"c-{host}", "down")

    def heal(self, host: str) -> None:
        self._switches("set", f"c-{host}", "up")

    def stop(self) -> None:
        super().stop()
        for host in ("switches", *self._names):
            for pid in _ip("netns", "pids", self._netns(host)).split():  # actors that outlived their raylet
                os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", self._netns(host))

    def _plug_in(self, host: str, net: str, address: str) -> None:
        port, here = f"{net[0]}-{host}", self._netns(host)
        self._switches("add", port, "type", "veth", "peer", "name", net, "netns", here)
        self._switches("set", port, "master", net, "up")
        _ip("-n", here, "addr", "add", f"{address}/24", "dev", net)
        _ip("-n", here, "link", "set", net, "up")

    def _netns(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def _switches(self, *words: str) -> None:
        _ip("-n", self._netns("switches"), "link", *words)


_IP = shutil.which("ip", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])) or "ip"


def _ip(*words: str) -> str:
    return subprocess.run([_IP, *words], check=True, capture_output=True, text=True).stdout


def namespaces_allowed() -> bool:
    """Whether this machine lets us make hosts of our own."""
    trial = f"mill-{os.getpid()}-trial"
    try:
        _ip("netns", "add", trial)
        _ip("-n", trial, "link", "add", "left", "type", "veth", "peer", "name", "right")
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run([_IP, "netns", "del", trial], check=False, capture_output=True)
    return True
