"""The Hugging Face Hub: a git repository for each data set, so that every write is a commit to a branch.

It has no create-if-absent of one file. What it has is a commit that fails if the branch has moved (`parent_commit`): by
any commit of any other actor, so it is not used. The branch may move under a plain commit, too: it is tried again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError, StoreRefused
from pipeline.storage.failures import answer


def send_once(fs: Any, stall_seconds: float) -> None:
    """Have every request of a client sent once, and cut when it stays silent for `stall_seconds`."""
    from huggingface_hub import _commit_api, get_session, hf_file_system, lfs  # slow to import, and rarely needed
    from huggingface_hub.utils import _pagination, disable_progress_bars  # type: ignore[attr-defined]
    from huggingface_hub.utils._http import http_backoff

    def once(*request: Any, timeout: float | None = None, **options: Any) -> Any:
        return http_backoff(*request, timeout=timeout or stall_seconds, max_retries=0, **options)

    for module in (hf_file_system, _pagination, _commit_api, lfs):
        vars(module)["http_backoff"] = once  # what stands there repeats 5 times, and waits for ever
    get_session().timeout = stall_seconds
    disable_progress_bars()
    fs.dircache.clear()  # it keeps listings, whatever `use_listings_cache` says


def info(fs: Any, path: str) -> Mapping[str, Any]:
    """What the hub tells of one object, its version too."""
    found: dict[str, Any] = fs.info(path, expand_info=True)  # else without a version
    fs.dircache[fs._parent(found["name"])] = [found]  # an open file asks for itself again, before each range
    return found


def upload(fs: Any, path: str, content: Path | bytes) -> None:
    """Commit one file, whatever stood there.

    Past the filesystem's own file, which copies all into a temporary one first, and leaves that behind on an error.

    Raises:
        StoreRefused: `path` lies in a bucket of the Hub, which is no repository.
    """
    from huggingface_hub import HfApi

    place = fs.resolve_path(path)
    if not hasattr(place, "repo_id"):
        raise StoreRefused(f"hf://{path}: buckets of the Hub cannot be written; name a data set (hf://datasets/...)")
    where = {"repo_id": place.repo_id, "repo_type": place.repo_type, "revision": place.revision}
    with _branch_that_moves(path):
        HfApi(endpoint=fs.endpoint, token=fs.token).upload_file(
            path_or_fileobj=content, path_in_repo=place.path_in_repo, **where
        )


def delete(fs: Any, path: str) -> None:
    """Commit that a file is gone."""
    with _branch_that_moves(path):
        fs.rm_file(path)


@contextmanager
def _branch_that_moves(path: str) -> Iterator[None]:
    """Two commits met: the hub answers 412 to one of them, which means that a file is there on other stores only."""
    try:
        yield
    except Exception as error:
        if answer(error)[0] == 412:
            raise StorageError(f"hf://{path}: another commit to the branch came first") from error
        raise
