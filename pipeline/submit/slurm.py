"""`tokenmill run` as a batch job of Slurm: the script that starts Ray on the job's nodes, and its submission."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.submit.job_folder import JOB_FILE

SCRIPT_FILE = "run.sbatch"
NOTICE_SECONDS = 120  # before the time limit ends the job, so that the run drains

# Not Ray's own `symmetric-run`: it takes a head that did not start for success, and stops the Ray of other jobs.
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={folder}/slurm-%j.log
#SBATCH --ntasks-per-node=1
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --signal=B:TERM@{notice}
{options}
# Written by `tokenmill submit --slurm`: starts Ray on the nodes of the job, runs it on the first one, ends Ray.
# Sent again, it waits for its predecessor (singleton), and does what OUTPUT still lacks.
set -euo pipefail
umask 077
unset RAY_ADDRESS RAY_AUTH_TOKEN ${{!TOKENMILL_@}} # of who submitted it: job.yaml has what these said
export PATH={bin}:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN_PATH={folder}/token-$SLURM_JOB_ID
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node
address=${{nodes[0]}}:$port
files=/tmp/tokenmill-$SLURM_JOB_ID # of Ray, on each node; kept to be looked at unless all went well
start='exec ray start --block --num-cpus=$SLURM_CPUS_ON_NODE --object-store-memory=500000000'
is_up="(: > /dev/tcp/${{nodes[0]}}/$port) 2> /dev/null"
srun --overlap --nodes=1 --ntasks=1 --nodelist="${{nodes[0]}}" \\
    bash -c "$start --head --port=$port --ray-client-server-port=$((port + 10000)) --temp-dir=$files \\
        --include-dashboard=false" &
head=$!
if ((${{#nodes[@]}} > 1)); then
    srun --overlap --nodes=$((${{#nodes[@]}} - 1)) --ntasks=$((${{#nodes[@]}} - 1)) --exclude="${{nodes[0]}}" \\
        bash -c "until $is_up; do sleep 1; done; $start --address=$address" &
fi
until eval "$is_up"; do
    kill -0 "$head" 2> /dev/null || {{ echo "Ray did not start on ${{nodes[0]}}; see above" >&2; exit 1; }}
    sleep 1
done
((${{#nodes[@]}} == 1)) || python {folder}/wait.py "$address" "${{#nodes[@]}}"

cd {folder}
python -m jobs run {job} --json --set cluster.address="$address" &
run=$!
trap 'kill -TERM "$run"' TERM # the time is nearly over: running shards finish, the rest is for the next job
code=0
wait "$run" || code=$?
while kill -0 "$run" 2> /dev/null; do
    code=0
    wait "$run" || code=$?
done
scancel --signal=KILL "$SLURM_JOB_ID.0" "$SLURM_JOB_ID.1" 2> /dev/null || true # Ray: asked politely, it takes 30 s
[ "$code" != 0 ] || srun --overlap rm -rf "$files"
exit "$code"
"""

WAIT = """\
import sys, time
import ray

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
wanted, deadline = int(sys.argv[2]), time.monotonic() + 600
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"only {there} of {wanted} nodes joined Ray within 600 s")
    time.sleep(1)
"""


def write_script(folder: Path, name: str, options: Sequence[str] = ()) -> Path:
    """Write the batch script beside the job.

    Args:
        folder: of `job_folder.write_job`, on a disk that all nodes share.
        name: of the job; of two jobs with one name the second waits.
        options: of sbatch, without dashes: `nodes=4`, `gpus-per-node=8`, `time=24:00:00`, `exclusive`.

    Raises:
        UsageError: an option is none.
    """
    for option in options:
        if not re.fullmatch(r"[a-z][a-z-]*(=[^\n]*)?", option):
            raise UsageError(f"--sbatch must be an option of sbatch without dashes, as nodes=4, got {option!r}")
    if any(character.isspace() or character in "%\\" for character in str(folder)):
        raise UsageError(f"the folder of a Slurm job must have no space, % or \\ in its path, got {folder}")
    script = folder / SCRIPT_FILE
    (folder / "wait.py").write_text(WAIT)
    script.write_text(
        SCRIPT.format(
            name=name,
            folder=folder,
            notice=NOTICE_SECONDS,
            options="\n".join(f"#SBATCH --{option}" for option in options),
            bin=shlex.quote(str(Path(sys.executable).parent)),
            job=JOB_FILE,
        )
    )
    return script


def submit(script: Path, *, wait: bool) -> tuple[str, int]:
    """Give the script to Slurm.

    Args:
        script: of `write_script`.
        wait: until the job has ended.

    Returns:
        The id of the job, and the exit code of its run (0 if that was not waited for).

    Raises:
        UsageError: there is no Slurm here, or it refuses the job.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UsageError(f"there is no sbatch here; on a machine that has one: sbatch {script}")
    command = [sbatch, "--parsable", *(["--wait"] if wait else []), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, our own words
    job = done.stdout.strip().partition(";")[0]
    if not job:
        raise UsageError(f"Slurm refuses the job: {done.stderr.strip()}")
    return job, done.returncode
