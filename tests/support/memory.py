"""The resident memory of this process, from /proc.

Not `getrusage`: a child's `ru_maxrss` starts with what its parent held when it was forked.
"""

from pathlib import Path


def resident_bytes() -> int:
    """What is resident now."""
    return _status_bytes("VmRSS:")


def peak_bytes() -> int:
    """The most that was resident, since the start or since `forget_peak`."""
    return _status_bytes("VmHWM:")


def address_space_bytes() -> int:
    """What is mapped now."""
    return _status_bytes("VmSize:")


def forget_peak() -> None:
    """Let the peak start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])
