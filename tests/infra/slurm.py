"""A real Slurm on loopback: one controller, and as many nodes as this host has names for itself."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.commands import wait_until
from tests.support.servers import free_ports

# Without munge: everything here runs as one user, on one machine.
CONFIG = """\
ClusterName=tokenmill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path, nodes: int) -> Iterator[dict[str, str]]:
    """Run it until the end of the block; gives the environment of those who speak to it."""
    host, (port, *others) = socket.gethostname().partition(".")[0], free_ports(1 + nodes)
    names = [host, "localhost"][:nodes]
    text = CONFIG.format(host=host, port=port, folder=folder)
    for name, own in zip(names, others, strict=True):
        text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} CPUs=2\n"
        (folder / f"spool-{name}").mkdir()
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(text)
    environment = {"SLURM_CONF": f"{folder}/slurm.conf"}
    with ExitStack() as stack:
        daemons = [["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in names)]
        controller, *_ = [stack.enter_context(_daemon(command, folder, environment)) for command in daemons]
        wait_until(lambda: _idle(environment) == nodes, controller, 60)
        yield environment


def _idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--states=idle"]
    said = subprocess.run(command, capture_output=True, text=True, env=environment | {"PATH": "/usr/bin"}, check=False)
    return len(said.stdout.splitlines())


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with (folder / f"{command[0]}-{command[-1]}.log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment | path)
    try:
        yield daemon
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
