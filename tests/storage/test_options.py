"""`storage.options` reach the store: what a recording proxy before a real server sees of them."""

from collections.abc import Iterator

import pytest

from pipeline.errors import TokenmillError
from pipeline.storage import Storage, StorageConfig
from tests.support.fault_proxy import FaultProxy, Kind, Request, fault_proxy
from tests.support.s3 import S3

pytestmark = pytest.mark.system


class Recorder:
    """A plan that strikes nothing and remembers every request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> None:
        self.requests.append(request)

    def headers(self, name: str) -> dict[Kind, str | None]:
        """The value of a header in the last request of each kind."""
        return {request.kind: request.headers.get(name) for request in self.requests}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def proxy(s3: S3, recorder: Recorder) -> Iterator[FaultProxy]:
    Storage().write("s3://tests/options/a", b"x")
    with fault_proxy(s3.endpoint, recorder) as proxy:
        yield proxy


def use(storage: Storage) -> None:
    """Send a request of each kind that reads."""
    assert storage.read("s3://tests/options/a") == b"x"
    storage.list_folder("s3://tests/options")


def test_requests_are_signed_and_go_to_the_endpoint(proxy: FaultProxy, recorder: Recorder) -> None:
    use(Storage(StorageConfig(options={"endpoint_url": proxy.endpoint})))
    signed = recorder.headers("Authorization")
    assert signed.keys() == {Kind.HEAD, Kind.RANGE, Kind.LIST}
    assert all(value and value.startswith("AWS4-HMAC-SHA256 Credential=") for value in signed.values())
    assert set(recorder.headers("x-amz-request-payer").values()) == {None}


def test_anonymous_access(proxy: FaultProxy, recorder: Recorder) -> None:
    storage = Storage(StorageConfig(options={"endpoint_url": proxy.endpoint, "anon": True}))
    with pytest.raises(TokenmillError, match="permission denied"):
        use(storage)
    assert recorder.requests
    assert set(recorder.headers("Authorization").values()) == {None}


def test_requester_pays(proxy: FaultProxy, recorder: Recorder) -> None:
    use(Storage(StorageConfig(options={"endpoint_url": proxy.endpoint, "requester_pays": True})))
    sent = recorder.headers("x-amz-request-payer")
    assert sent == {Kind.HEAD: "requester", Kind.RANGE: "requester", Kind.LIST: "requester"}


def styled(proxy: FaultProxy, style: str) -> Storage:
    """By a name, as an address always gets path style."""
    endpoint = proxy.endpoint.replace("127.0.0.1", "localhost")
    options = {"endpoint_url": endpoint, "config_kwargs": {"s3": {"addressing_style": style}}}
    return Storage(StorageConfig(options=options, retry_seconds=0))


def test_path_style(proxy: FaultProxy, recorder: Recorder) -> None:
    assert styled(proxy, "path").stat("s3://tests/options/a").size == 1
    assert [request.path for request in recorder.requests] == ["/tests/options/a"]


def test_virtual_style(proxy: FaultProxy, recorder: Recorder) -> None:
    with pytest.raises(TokenmillError):  # no bucket is a host here
        styled(proxy, "virtual").stat("s3://tests/options/a")
    assert all(request.headers["Host"].startswith("tests.localhost") for request in recorder.requests)


def test_our_way_of_sending_once_stays_beside_the_options_of_the_user(proxy: FaultProxy) -> None:
    options = {"endpoint_url": proxy.endpoint, "config_kwargs": {"user_agent_extra": "mine"}}
    with fault_proxy(proxy.endpoint, recorder := Recorder()) as outer:
        options["endpoint_url"] = outer.endpoint
        use(Storage(StorageConfig(options=options)))
    assert all("mine" in str(agent) for agent in recorder.headers("User-Agent").values())
