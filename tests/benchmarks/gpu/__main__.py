"""See the package: `python -m tests.benchmarks.gpu --help`."""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK_SECONDS = 420.0  # after so long a quick run begins no new step


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes, under 8 minutes")
    parser.add_argument(
        "--tiny", action="store_true", help="shrunk models: shows that the benchmark works, measures nothing"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-bench"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--worker", metavar="MODEL", help="be one of several processes that measure at once")
    return parser.parse_args()


class Bench:
    """Runs steps, keeps what they found, and goes on when one fails.

    Args:
        folder: where gpu.json and gpu.md go.
        seconds: after so long no new step begins.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._end = folder, time.monotonic() + seconds
        self.figures: dict[str, Any] = {"machine": {}, "failed": {}, "seconds": {}}

    def step(self, name: str, work: Callable[[], Any], under: str | None = None) -> None:
        """Do a step and write everything down; `under` names the section it is a part of."""
        if time.monotonic() > self._end:
            self.figures["failed"][name] = "no time left"
            return
        begun = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            found = work()
            if under:
                self.figures.setdefault(under, {})[name.rpartition(" ")[2]] = found
            else:
                self.figures[name] = found
        except Exception:  # the other steps may still tell something
            self.figures["failed"][name] = traceback.format_exc(limit=-4)
            print(self.figures["failed"][name], flush=True)
        self.figures["seconds"][name] = round(time.monotonic() - begun, 1)
        self._write()

    def _write(self) -> None:
        from tests.benchmarks.gpu.report import markdown

        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "gpu.json").write_text(json.dumps(self.figures, indent=2))
        (self._folder / "gpu.md").write_text(markdown(self.figures))


def main() -> int:
    """Run; 1 if something failed."""
    given = arguments()
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    import torch

    from tests.benchmarks.gpu import ceilings, geometries, kernels, models

    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; try --device cpu --tiny", file=sys.stderr)
        return 1
    scale = geometries.TINY if given.tiny else geometries.QUICK if given.quick else geometries.Scale()
    device, names = given.device, geometries.NAMES[: 1 if given.tiny else None]
    if given.worker:
        models.worker(given.worker, scale, device)
        return 0
    bench = Bench(given.output, QUICK_SECONDS if given.quick else float("inf"))
    bench.step("machine", lambda: ceilings.machine(device))
    bench.step("checks", lambda: [*kernels.check_kernels(scale, device), *models.check_engine(scale, device)])
    bench.step("ceilings", lambda: ceilings.ceilings(scale, device))
    peak = bench.figures.get("ceilings", {})
    bench.step("kernels", lambda: kernels.rivals(scale, device))
    for name in names:
        bench.step(f"precisions {name}", lambda name=name: models.precisions(name, scale, device), "precisions")
        bench.step(f"rates {name}", lambda name=name: models.rates(name, scale, device, peak), "rates")
    bench.step("profile", lambda: models.kernel_by_kernel("f16", scale, device))
    bench.step("ways", lambda: models.ways("f16", scale, device))
    bench.step("together", lambda: models.together("f16", scale, device))
    print((given.output / "gpu.md").read_text())
    held = all(verdict for _, verdict, _ in bench.figures.get("checks", [("", False, "")]))
    return 0 if held and not bench.figures["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
