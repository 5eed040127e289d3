"""A child process that decodes hostile files within limits, and tells what each one cost: `python -m` this module.

Prints one line of JSON per file, flushed before the next is begun, so that a death names its cause.
"""

import json
import os
import resource
import time

from pipeline.errors import Reject
from pipeline.images import ImageConfig, configure_pillow, prepare
from tests.security.hostile_images import all_kinds, encoded, heavy_kinds
from tests.support.memory import address_space_bytes, forget_peak, peak_bytes, resident_bytes

ADDRESS_SPACE = 1 << 30  # bytes beyond what the imports have taken
CPU_SECONDS = 120
ROUNDS = 3  # the first one fills caches; after that nothing may grow
GOOD = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "PPM")


def decode_all(files: dict[str, bytes], number: int) -> None:
    """One round over all files."""
    for name, data in files.items():
        print(json.dumps({"begin": name}), flush=True)
        forget_peak()
        before, start = resident_bytes(), time.thread_time()
        outcome = prepare(data, ImageConfig())
        cost = {"cpu": time.thread_time() - start, "bytes": peak_bytes() - before}
        verdict = [outcome.stage, outcome.reason, outcome.detail] if isinstance(outcome, Reject) else None
        print(json.dumps({"round": number, "name": name, "verdict": verdict, **cost}), flush=True)


def main() -> None:
    """Decode good files, so that every decoder is loaded; then the hostile ones, several times."""
    configure_pillow()
    files = {name: data for name, (_, data) in all_kinds().items()} | heavy_kinds()
    for form in GOOD:
        assert not isinstance(prepare(encoded(form), ImageConfig()), Reject), form
    limit = address_space_bytes() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file at all
    for number in range(ROUNDS):
        decode_all(files, number)
        left = {"files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}
        print(json.dumps({"round": number, "bytes": resident_bytes(), **left}), flush=True)


if __name__ == "__main__":
    main()
