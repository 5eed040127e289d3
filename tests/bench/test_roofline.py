"""The roofline, from costs that are given."""

import pytest

from pipeline.bench.roofline import Cost, Roofline, Stage, roofline

COSTS = {
    Stage.FETCH: Cost(rate=5000.0, cpu=0.0001),
    Stage.TAR: Cost(rate=20_000.0, cpu=0.00005),
    Stage.DECODE: Cost(rate=400.0, cpu=0.005),
    Stage.ENCODE: Cost(rate=100.0, cpu=0.02),
    Stage.WRITE: Cost(rate=4000.0, cpu=0.00025),
    Stage.INSPECT: Cost(rate=1700.0, cpu=0.0006),
}
ALL = 0.026  # CPU seconds per image


def changed(stage: Stage, **changes: float) -> dict[Stage, Cost]:
    cost = {"rate": COSTS[stage].rate, "cpu": COSTS[stage].cpu, **changes}
    return {**COSTS, stage: Cost(**cost)}


def test_on_a_cpu_all_stages_share_the_cores() -> None:
    roof = roofline(COSTS, 2.0, on_cpu=True)
    assert roof.bound == pytest.approx(2 / ALL)
    assert (roof.limit, roof.heaviest, roof.cores_per_device) == ("cores", Stage.ENCODE, None)
    assert roof.share(Stage.ENCODE) == pytest.approx(0.02 / ALL)
    assert sum(roof.share(stage) for stage in COSTS) == pytest.approx(1.0)


def test_free_cores_are_what_counts() -> None:
    assert roofline(COSTS, 0.5, on_cpu=True).bound == pytest.approx(0.5 / ALL)


@pytest.mark.parametrize(
    ("costs", "cores", "limit", "bound"),
    [
        (changed(Stage.ENCODE, rate=2000.0, cpu=0.0), 16.0, "device", 2000.0),
        (changed(Stage.ENCODE, rate=2000.0, cpu=0.0), 4.0, "cores", 4 / 0.006),
        (changed(Stage.ENCODE, rate=2000.0, cpu=0.0) | {Stage.FETCH: Cost(90.0, 0.0001)}, 16.0, "store", 90.0),
    ],
)
def test_what_gives_out_first_beside_a_device(costs: dict[Stage, Cost], cores: float, limit: str, bound: float) -> None:
    roof: Roofline = roofline(costs, cores, on_cpu=False)
    assert (roof.limit, roof.bound) == (limit, pytest.approx(bound))


def test_cores_that_keep_a_device_supplied() -> None:
    roof = roofline(changed(Stage.ENCODE, rate=2000.0, cpu=0.0), 64.0, on_cpu=False)
    assert roof.cores_per_device == pytest.approx(2000 * 0.006)
    assert roof.heaviest is Stage.DECODE
