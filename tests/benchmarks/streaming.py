"""How fast one shard streams from an S3 server on loopback: our stream beside plain s3fs and obstore.

    python -m tests.benchmarks.streaming            needs obstore (pip install obstore)

Rounds are interleaved and the best of each counts; the ratios of one run mean more than its figures. `cpu` is what this
process spends for each GB: on a host that also decodes images it is what the reader takes from the decoders.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import obstore

from pipeline.storage import Storage, StorageConfig
from tests.support.s3 import KEY, S3, SECRET, seaweedfs

SIZE = 512 << 20
BLOCK = 8 << 20
AHEAD = 4
ROUNDS = 3
URL = "s3://bench/a.tar"


def ours(server: S3) -> Iterator[int]:
    """`Storage.stream`, in the pieces that the tar reader takes."""
    storage = Storage(StorageConfig(options={"endpoint_url": server.endpoint}))
    with storage.stream(storage.stat(URL)) as stream:
        while data := stream.read(1 << 20):
            yield len(data)


def s3fs_open(server: S3, **options: object) -> Iterator[int]:
    """s3fs' own file."""
    with server.client().open(URL, "rb", **options) as file:
        while data := file.read(BLOCK):
            yield len(data)


def obstore_client(server: S3) -> obstore.store.S3Store:
    """A client of its own."""
    return obstore.store.S3Store(
        "bench",
        access_key_id=KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True},
        endpoint=server.endpoint,
    )


def obstore_stream(server: S3) -> Iterator[int]:
    """One GET, as it comes."""
    for chunk in obstore.get(obstore_client(server), "a.tar").stream(min_chunk_size=BLOCK):
        yield len(chunk)


def obstore_window(server: S3) -> Iterator[int]:
    """Ranges ahead, in order: what `Storage.stream` does, by another client."""
    store = obstore_client(server)
    offsets = iter(range(0, SIZE, BLOCK))

    def fetch(offset: int) -> int:
        return len(obstore.get_range(store, "a.tar", start=offset, length=BLOCK))

    with ThreadPoolExecutor(AHEAD) as pool:
        ahead = deque(pool.submit(fetch, offset) for offset in islice(offsets, AHEAD))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(fetch, offset) for offset in islice(offsets, 1))


READERS: dict[str, Callable[[S3], Iterator[int]]] = {
    "Storage.stream": ours,
    "s3fs, read-ahead": s3fs_open,
    "s3fs, no cache, 8 MiB": lambda server: s3fs_open(server, cache_type="none"),
    "obstore, one stream": obstore_stream,
    "obstore, 4 x 8 MiB in order": obstore_window,
}


def main() -> None:
    """Print the table."""
    best: dict[str, tuple[float, float]] = {}
    with TemporaryDirectory() as folder, seaweedfs(Path(folder)) as server:
        os.environ.update(server.environment)
        server.make_bucket("bench")
        with server.client().open(URL, "wb") as file:
            for _ in range(SIZE >> 23):
                file.write(os.urandom(BLOCK))
        for _ in range(ROUNDS):
            for name, reader in READERS.items():
                start, cpu = time.perf_counter(), time.process_time()
                assert sum(reader(server)) == SIZE
                figures = SIZE / (time.perf_counter() - start) / 1e6, (time.process_time() - cpu) / SIZE * 1e9
                best[name] = max(best.get(name, (0.0, 0.0)), figures)
    base = best["Storage.stream"][0]
    for name, (rate, cpu) in best.items():
        print(f"{name:28} {rate:6.0f} MB/s {rate / base:5.2f}x  cpu {cpu:.2f} s/GB")


if __name__ == "__main__":
    main()
