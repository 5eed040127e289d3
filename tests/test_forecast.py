"""The arithmetic of a forecast, as tables."""

from pathlib import Path

import pytest

from pipeline.encoding import Precision
from pipeline.errors import UsageError
from pipeline.forecast import Forecast, PriceTable, cost, forecast, price_table, requests
from pipeline.messages import Calibration

PRICES = PriceTable(actor_hour={"": 1.0, "H200": 4.0, "NVIDIA H200 NVL": 5.0}, thousand_requests=0.5, gb_read=0.1)


def calibration(device: str, bytes_per_sample: float) -> Calibration:
    return Calibration(device, 8, {8: 100.0}, 300.0, 32, {}, (), Precision.EXACT, bytes_per_sample=bytes_per_sample)


@pytest.mark.parametrize(
    ("device", "views", "actors", "expected"),
    [
        ("cuda", 1, 1, Forecast(1000, 10.0)),  # the slower stage
        ("cpu", 1, 1, Forecast(1000, 1000 / 75)),  # both on the same cores
        ("cuda", 10, 4, Forecast(10_000, 25.0)),
    ],
)
def test_forecast_of_a_calibration(device: str, views: int, actors: int, expected: Forecast) -> None:
    found = forecast(calibration(device, 500.0), views, 500_000, actors)
    assert found is not None
    assert found.rows == expected.rows
    assert found.seconds == pytest.approx(expected.seconds)


def test_forecast_without_a_sample() -> None:
    assert forecast(calibration("cpu", 0.0), 1, 500_000, 1) is None


@pytest.mark.parametrize(
    ("device", "price"), [("cpu", 1.0), ("NVIDIA H200", 4.0), ("nvidia h200 nvl", 5.0)], ids=["any", "part", "longest"]
)
def test_price_of_an_actor(device: str, price: float) -> None:
    assert PRICES.of_actor(device) == price
    assert cost(PRICES, device, 10.0, 2 * 10**9, 4000) == pytest.approx(10 * price + 0.2 + 2.0)


def test_device_without_a_price() -> None:
    assert cost(PriceTable(actor_hour={"H200": 4.0}), "cpu", 10.0, 0, 0) is None


@pytest.mark.parametrize(("sizes", "expected"), [([], 0), ([1], 3), ([8 << 20], 3), ([(8 << 20) + 1, 1], 7)])
def test_requests_of_shards(sizes: list[int], expected: int) -> None:
    assert requests(sizes) == expected


@pytest.mark.parametrize(
    "text", ["actor_hours: {H200: 3}", "gb_read: -1", "[", "- 1", "currency: £", "gb_read: 2026-13-01"]
)
def test_file_that_is_no_table_of_prices(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"prices\.yaml: must be a table of prices"):
        price_table(tmp_path / "prices.yaml")
