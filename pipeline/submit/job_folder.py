"""A job as a folder that travels: the resolved configuration, and the lists it names, under a name of its own."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from pipeline.config import JobConfig
from pipeline.shards.manifest import expand_braces, list_lines
from pipeline.storage import Storage
from pipeline.urls import canonical, scheme_of

JOB_FILE = "job.yaml"
NAME_LENGTH = 12  # hex digits of the digest that names a job


def write_job(config: JobConfig, folder: Path) -> str:
    """Write `job.yaml`, and a copy of every local list of shards, into an empty folder.

    Local paths are absolute in it, as relative ones mean this folder here, and mean the disks of the machines that run
    the job. Credentials cannot be in it, as the configuration refuses them.

    Returns:
        The name of the job: equal for equal contents, so that the same command finds the same job.

    Raises:
        UsageError: a list cannot be read, or a URL holds credentials.
    """
    document = config.model_dump(mode="json", exclude_unset=True)
    digest, shards = hashlib.sha256(), list[str]()
    for number, spec in enumerate(filter(None, map(str.strip, config.shards))):
        if spec.startswith("@") and scheme_of(spec[1:]) == "file":
            lines = _absolute(list_lines(Storage(config.storage), spec[1:]))
            text = "".join(f"{line}\n" for line in lines).encode()
            digest.update(text)
            name = f"shards-{number}.txt"
            (folder / name).write_bytes(text)
            shards.append(f"@{name}")
        else:
            shards += _absolute([spec])
    document["shards"] = shards
    text = yaml.safe_dump(document, sort_keys=True, allow_unicode=True).encode()
    digest.update(text)
    (folder / JOB_FILE).write_bytes(text)
    return f"tokenmill-{digest.hexdigest()[:NAME_LENGTH]}"


def _absolute(specs: Iterable[str]) -> Iterator[str]:
    """The specs, local ones with absolute paths; braces stay, unless they stand for absolute and relative ones."""
    for spec in specs:
        canonical(spec.removeprefix("@"))  # refuses credentials and signatures before anything is written
        if scheme_of(spec.removeprefix("@")) != "file":
            yield spec
            continue
        mixed = spec.startswith("{") and re.search("[{,][/~]", spec)
        for place in expand_braces(spec) if mixed else [spec]:
            yield os.path.join(os.getcwd(), os.path.expanduser(place.removeprefix("file://")))
