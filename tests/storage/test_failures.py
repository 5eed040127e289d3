"""Errors: which are worth another try, how often a request is sent, and what the user reads."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError
from s3fs.errors import translate_boto_error

from pipeline.errors import AlreadyExists, NotFound, StorageError, StoreRefused, UsageError
from pipeline.storage import Storage, StorageConfig, remote
from pipeline.storage.clients import client_options
from pipeline.storage.failures import Busy, Forbidden, NoCredentials, RequestRefused, StaleCredentials, translate
from pipeline.storage.remote import ObjectStore
from tests.support.s3 import S3
from tests.support.servers import deaf, free_ports, misbehaving

URL = "s3://bucket/a.tar"
CALLS: dict[str, Callable[[Storage, str], object]] = {
    "stat": lambda storage, folder: storage.stat(f"{folder}/a"),
    "list": lambda storage, folder: storage.list_folder(folder),
    "glob": lambda storage, folder: storage.glob(f"{folder}/*"),
    "read": lambda storage, folder: storage.read(f"{folder}/a"),
    "write": lambda storage, folder: storage.write(f"{folder}/a", b"x"),
    "delete": lambda storage, folder: storage.delete(f"{folder}/a"),
    "create": lambda storage, folder: storage.create(f"{folder}/a", Path(__file__)),
    "put": lambda storage, folder: storage.put(f"{folder}/a", Path(__file__)),
    "open": lambda storage, folder: storage.open_random(f"{folder}/a").__enter__(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def answered(status: int, code: str, **fields: str) -> Exception:
    """What s3fs raises for an answer of S3."""
    answer = {"Error": {"Code": code, "Message": f"about {code}", **fields}}
    return translate_boto_error(ClientError({**answer, "ResponseMetadata": {"HTTPStatusCode": status}}, "AnyCall"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(404, "NoSuchKey"), NotFound),
        (answered(404, "404"), NotFound),
        (answered(404, "NoSuchBucket"), UsageError),
        (answered(412, "PreconditionFailed"), AlreadyExists),
        (answered(412, "PreconditionFailed", Condition="If-None-Match"), AlreadyExists),
        (answered(409, "ConditionalRequestConflict"), StorageError),  # S3: two creates met; neither is decided
        (answered(409, "OperationAborted"), StorageError),
        (answered(403, "AccessDenied"), Forbidden),
        (answered(403, "SignatureDoesNotMatch"), Forbidden),
        (answered(403, "RequestTimeTooSkewed"), StaleCredentials),
        (answered(400, "ExpiredToken"), StaleCredentials),
        (answered(403, "ExpiredToken"), StaleCredentials),
        (answered(400, "InvalidToken"), UsageError),
        (answered(400, "InvalidBucketName"), UsageError),
        (answered(301, "PermanentRedirect"), UsageError),
        (answered(400, "KMS.DisabledException"), RequestRefused),
        (answered(400, "InvalidRequest"), RequestRefused),
        (answered(400, "RequestTimeout"), StorageError),
        (answered(400, "IncompleteBody"), StorageError),
        (answered(429, "TooManyRequests"), Busy),
        (answered(500, "InternalError"), StorageError),
        (answered(501, "NotImplemented"), StoreRefused),
        (answered(503, "SlowDown"), Busy),
        (EndpointConnectionError(endpoint_url="https://store.example"), StorageError),
        (NoCredentialsError(), NoCredentials),
        (ParamValidationError(report="Invalid bucket name"), UsageError),
        (TypeError("unexpected keyword argument 'nonsense'"), UsageError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "an answer that is no JSON"), StorageError),
        (TimeoutError(), StorageError),
        (NotADirectoryError(), NotFound),
        (FileExistsError(), AlreadyExists),
    ],
    ids=repr,
)
def test_translation(error: Exception, kind: type[Exception]) -> None:
    translated = translate(error, URL)
    assert type(translated) is kind
    assert str(translated).startswith(f"{URL}: ")


def test_cause_of_an_upload_that_failed() -> None:
    error = RuntimeError("Error while uploading 'a' to the Hub.")
    error.__cause__ = answered(503, "SlowDown")
    assert isinstance(told := translate(error, URL), Busy)
    assert "about SlowDown" in str(told)


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://user:CANARY@store.example/a"),
        OSError("403 for url: https://cdn.example/a/b?X-Amz-Signature=CANARY&X-Amz-Date=1"),
        OSError("<Url>/a b?X-Amz-Credential=CANARY%2F2026&x-amz-security-token=CANARY</Url>"),
        OSError("https://account.blob.example/c/a.tar?sv=1&sig=CANARY"),
    ],
    ids=repr,
)
def test_secrets_of_a_client_are_not_passed_on(error: Exception) -> None:
    translated = translate(error, "https://user:CANARY@store.example/a.tar?sig=CANARY")
    assert "CANARY" not in str(translated)
    assert "https://store.example/a.tar" in str(translated)


@pytest.mark.system
@every_call
def test_missing_bucket(s3: S3, call: Callable) -> None:
    with pytest.raises(UsageError, match=r"s3://no-such-bucket/.*the bucket does not exist"):
        call(Storage(), "s3://no-such-bucket/folder")


@pytest.mark.system
@every_call
def test_wrong_secret(s3: S3, call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARY")
    storage = Storage(StorageConfig(stall_seconds=59))  # a client of its own
    with pytest.raises(UsageError, match=r"permission denied .*; check the credentials") as caught:
        call(storage, "s3://tests/folder")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options"), [("s3://Bad Bucket!/a", {}), ("s3://bucket/a", {"nonsense": 1})], ids=["name", "option"]
)
def test_call_that_the_client_refuses(url: str, options: dict) -> None:
    config = StorageConfig(options={"anon": True, "endpoint_url": "http://127.0.0.1:9", **options})
    with pytest.raises(UsageError, match="this request cannot work"):
        Storage(config).stat(url)


def counted(endpoint: str, *, retry_seconds: float, stall_seconds: float = 20) -> Storage:
    options = {"endpoint_url": endpoint, "anon": True}
    return Storage(StorageConfig(options=options, retry_seconds=retry_seconds, stall_seconds=stall_seconds))


@every_call
def test_busy_store_gets_one_request_per_attempt(call: Callable) -> None:
    with misbehaving(status=503) as server, pytest.raises(StorageError, match="s3://bucket/folder"):
        call(counted(server.endpoint, retry_seconds=0), "s3://bucket/folder")
    assert len(server.requests) == 1


def test_retries_have_one_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []
    stat = ObjectStore.stat
    monkeypatch.setattr(ObjectStore, "stat", lambda store, url: attempts.append(url) or stat(store, url))
    with misbehaving(status=503) as server:
        with pytest.raises(StorageError):
            counted(server.endpoint, retry_seconds=0).stat(URL)  # to make a client takes a second of its own
        start = time.monotonic()
        with pytest.raises(StorageError):
            counted(server.endpoint, retry_seconds=2).stat(URL)
    assert 1 + 2 <= len(attempts) == len(server.requests)
    assert time.monotonic() - start < 4


def test_refused_connection_is_given_up_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match="Could not connect"):
        counted(f"http://127.0.0.1:{free_ports(1)[0]}", retry_seconds=1).stat(URL)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (410, NotFound), (403, Forbidden), (451, RequestRefused), (503, Busy), (500, StorageError)],
)
def test_answers_of_a_web_server(status: int, kind: type[Exception]) -> None:
    storage = Storage(StorageConfig(allow_http=True, allow_private_hosts=True, retry_seconds=0))
    with misbehaving(status=status) as server, pytest.raises(kind) as caught:
        storage.stat(f"{server.endpoint}/a.tar")
    assert type(caught.value) is kind


def test_web_server_that_is_down_is_no_missing_object() -> None:
    storage = Storage(StorageConfig(allow_http=True, allow_private_hosts=True, retry_seconds=0))
    with pytest.raises(StorageError, match="Cannot connect") as caught:
        storage.stat(f"http://127.0.0.1:{free_ports(1)[0]}/a.tar")
    assert not isinstance(caught.value, NotFound)


def test_store_that_stays_silent_is_cut() -> None:
    start = time.monotonic()
    with misbehaving(status=None) as server, pytest.raises(StorageError, match="imeout"):
        counted(server.endpoint, retry_seconds=0, stall_seconds=0.5).stat(URL)
    assert time.monotonic() - start < 5
    assert len(server.requests) == 1


def test_web_server_that_stays_silent_is_cut() -> None:
    start = time.monotonic()
    storage = Storage(StorageConfig(allow_http=True, allow_private_hosts=True, retry_seconds=0, stall_seconds=0.5))
    with misbehaving(status=None) as server, pytest.raises(StorageError, match="imeout"):
        storage.stat(f"{server.endpoint}/a.tar")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("private", [False, True])
def test_client_of_the_web_is_told_when_to_cut(private: bool) -> None:
    given = {"client_kwargs": {"trust_env": True}}
    config = StorageConfig(options=given, allow_http=True, allow_private_hosts=private, stall_seconds=7)
    options = client_options("https", config)["client_kwargs"]
    assert (options["timeout"].total, options["timeout"].sock_read, options["trust_env"]) == (None, 7, True)


@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # azure gives aiohttp bytes
@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_store_that_stops_reading_is_cut(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SLOWEST_UPLOAD", 1 << 30)
    (tmp_path / "file").write_bytes(bytes(16 << 20))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with deaf() as server:
        account = f"AccountName=any;AccountKey=YW55;BlobEndpoint={server.endpoint}/any;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
        options = {} if scheme == "abfs" else {"endpoint_url": server.endpoint}
        options |= {"token": "anon"} if scheme == "gs" else {}
        storage, start = Storage(StorageConfig(options=options, stall_seconds=1.5, retry_seconds=0)), time.monotonic()
        with pytest.raises(StorageError, match="the store did not take 16,777,216 bytes in 2 s"):
            storage.create(f"{scheme}://bucket/a", tmp_path / "file")
    assert time.monotonic() - start < 10
    assert len(server.requests) == 1


def test_local_errors_are_not_retried(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(tmp_path / "socket"))
        start = time.monotonic()
        with pytest.raises(StorageError, match="socket"):
            Storage().read(f"{tmp_path}/socket")
    assert time.monotonic() - start < 1
