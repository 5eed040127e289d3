"""Actors that start together ask for credentials one after another."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from pipeline.storage import Storage, StorageConfig, start
from pipeline.storage.start import SPREAD_SECONDS, Start, must_ask
from tests.support.credentials import CHAIN, issuer
from tests.support.servers import misbehaving


class Clock:
    """Seconds that pass while somebody sleeps."""

    def __init__(self, on_sleep: Callable[[], object] = lambda: None) -> None:
        self.now, self.slept, self._on_sleep = 1000.0, list[float](), on_sleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._on_sleep()
        self.slept.append(seconds)
        self.now += seconds


def test_moments_of_a_cluster() -> None:
    chance, moments = random.Random(0).random, []
    for _ in range(1000):
        clock = Clock()
        Start(clock, clock.sleep, chance).wait()
        moments.append(clock.now - 1000)
    assert 0 <= min(moments) < max(moments) < SPREAD_SECONDS
    tenths = Counter(int(10 * moment / SPREAD_SECONDS) for moment in moments)
    assert len(tenths) == 10
    assert max(tenths.values()) < 150, "far from the 1,000 of one instant"


def test_process_waits_once() -> None:
    clock = Clock()
    ours = Start(clock, clock.sleep, lambda: 0.25)
    for _ in range(3):
        ours.wait()
    assert clock.slept == [0.25 * SPREAD_SECONDS]


def test_threads_wait_for_the_same_moment() -> None:
    clock, slept = Clock(), list[float]()  # two that sleep at once: the clock is moved by hand
    ours = Start(clock, slept.append, iter([0.5]).__next__)
    ours.wait()
    clock.now += 0.4 * SPREAD_SECONDS
    ours.wait()
    assert slept == pytest.approx([0.5 * SPREAD_SECONDS, 0.1 * SPREAD_SECONDS])


@pytest.mark.parametrize(
    ("scheme", "options", "environment", "expected"),
    [
        ("s3", {}, {}, True),
        ("s3", {}, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"}, True),
        ("s3", {}, {"AWS_ACCESS_KEY_ID": "", "AWS_ROLE_ARN": "arn"}, True),
        ("s3", {"endpoint_url": "http://127.0.0.1:8333"}, {"AWS_ACCESS_KEY_ID": "key"}, False),
        ("s3", {"anon": True}, {}, False),
        ("gs", {}, {}, True),
        ("gs", {"token": "anon"}, {}, False),
        ("gs", {}, {"GOOGLE_APPLICATION_CREDENTIALS": "key.json"}, False),
        ("abfs", {"account_name": "mine"}, {}, True),
        ("abfs", {}, {"AZURE_STORAGE_CONNECTION_STRING": "..."}, False),
        ("hf", {}, {}, False),
        ("https", {}, {}, False),
    ],
)
def test_who_must_ask(scheme: str, options: dict, environment: dict, expected: bool) -> None:
    assert must_ask(scheme, options, environment) is expected


@pytest.mark.parametrize(("keys", "waits", "asked"), [({}, 1, 1), ({"AWS_ACCESS_KEY_ID": "key"}, 0, 0)])
def test_first_request(monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], waits: int, asked: int) -> None:
    asked_before: list[int] = []
    with issuer(claimed_seconds=3600) as given, misbehaving(status=404) as store:
        for name in CHAIN:
            monkeypatch.delenv(name, raising=False)
        for name, value in {**given.environment, "AWS_SECRET_ACCESS_KEY": "secret" if keys else "", **keys}.items():
            monkeypatch.setenv(name, value)
        clock = Clock(on_sleep=lambda: asked_before.append(given.asked))
        monkeypatch.setattr(start, "_ours", Start(clock, clock.sleep, lambda: 0.9))
        storage = Storage(StorageConfig(options={"endpoint_url": store.endpoint}, retry_seconds=0))
        assert not storage.exists("s3://bucket/a")
        assert not storage.exists("s3://bucket/b")
    assert asked_before == [0] * waits, "waits once, before the service is asked"
    assert given.asked == asked
    assert store.requests
