"""Tokenmill: web-scale image corpora to datasets of visual tokens, exactly once, with provenance.

from pipeline import JobConfig, run
result = run(JobConfig(shards=["corpus/{000..999}.tar"], model="path/to/vq", output="s3://bucket/tokens"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.driver import run

__all__ = ["JobConfig", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: `pipeline.model` alone must not pull in Ray."""
    if name == "JobConfig":
        from pipeline.config import JobConfig

        return JobConfig
    if name == "run":
        from pipeline.driver import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
