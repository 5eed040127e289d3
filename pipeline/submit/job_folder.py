"""A job as a folder that travels: the resolved configuration, and the lists it names, under a name of its own."""

import hashlib
from pathlib import Path

import yaml

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.urls import canonical, local_path, scheme_of

JOB_FILE = "job.yaml"
NAME_LENGTH = 12  # hex digits of the digest that names a job


def write_job(config: JobConfig, folder: Path) -> str:
    """Write `job.yaml`, and a copy of every local list of shards, into an empty folder.

    Paths to anything else stay as they are: they mean the disks of the machines that run the job. Credentials cannot
    be in it, as the configuration refuses them.

    Returns:
        The name of the job: equal for equal contents, so that the same command finds the same job.

    Raises:
        UsageError: a list cannot be read, or a URL holds credentials.
    """
    document = config.model_dump(mode="json", exclude_unset=True)
    digest, shards = hashlib.sha256(), []
    for number, given in enumerate(config.shards):
        spec = given
        canonical(spec.removeprefix("@"))  # refuses credentials and signatures before anything is written
        if spec.startswith("@") and scheme_of(spec[1:]) == "file":
            text = _read_list(spec[1:])
            digest.update(text)
            spec = f"@shards-{number}.txt"
            (folder / spec[1:]).write_bytes(text)
        shards.append(spec)
    document["shards"] = shards
    text = yaml.safe_dump(document, sort_keys=True, allow_unicode=True).encode()
    digest.update(text)
    (folder / JOB_FILE).write_bytes(text)
    return f"tokenmill-{digest.hexdigest()[:NAME_LENGTH]}"


def _read_list(place: str) -> bytes:
    path = local_path(place)
    assert path is not None, "the caller asked for its scheme"
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"@{place}: the list of shards cannot be read ({error.strerror})") from error
