"""What a machine can do with a job: each stage alone, then all together, and what bounds it."""

from pipeline.bench.figures import Bench
from pipeline.bench.picture import picture
from pipeline.bench.rounds import bench

__all__ = ["Bench", "bench", "picture"]
