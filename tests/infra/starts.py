"""What the shipped files say to `ray start`, held to the installed Ray."""

import shlex
from collections.abc import Iterable

from ray.scripts.scripts import start

OPTIONS = {name for parameter in start.params for name in parameter.opts}


def flags_of(command: str) -> list[str]:
    """The flags of the `ray start` in a command line."""
    words = shlex.split(command)
    at = words.index("start")
    assert words[at - 1] == "ray"
    return words[at + 1 :]


def check_flags(flags: Iterable[str]) -> dict[str, str]:
    """Every flag exists in the installed Ray; flag -> value."""
    found = dict(flag.partition("=")[::2] for flag in flags)
    assert found.keys() <= OPTIONS, found.keys() - OPTIONS
    return found
