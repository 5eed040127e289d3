"""Which URLs are allowed, their one spelling, and what never leaves them."""

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.urls import canonical, join, local_path, redact, redact_text, scheme_of

CWD = Path.cwd()
HOME = Path.home()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("shards/0.tar", f"file://{CWD}/shards/0.tar"),
        ("./a/../b/", f"file://{CWD}/b"),
        ("~/a.tar", f"file://{HOME}/a.tar"),
        ("/data//a.tar", "file:///data/a.tar"),
        ("file:///data/a b#c?d=e%20.tar", "file:///data/a b#c?d=e%20.tar"),
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("s3://bucket", "s3://bucket"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/x/a.tar", "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/a.tar"),
        ("http://[0:0:0:0:0:0:0:1]:80/a.tar", "http://[0:0:0:0:0:0:0:1]:80/a.tar"),
        ("s3://bucket/a b+c%20#d@e.tar", "s3://bucket/a b+c%20#d@e.tar"),
        ("s3://bucket/part-?/*.tar", "s3://bucket/part-?/*.tar"),
        ("gcs://bucket/a.tar", "gs://bucket/a.tar"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("az://container/a.tar", "abfs://container/a.tar"),
        ("hf://datasets/org/name@main/a.tar", "hf://datasets/org/name@main/a.tar"),
        ("https://host/a.tar#part", "https://host/a.tar"),
    ],
)
def test_canonical_spelling(url: str, expected: str) -> None:
    assert canonical(url) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:curl -s https://host/CANARY", "pipe: URLs run a shell"),
        ("simplecache::s3://bucket/a.tar", "chained URLs"),
        ("zip://a::https://u:CANARY@host/a?sig=CANARY", "chained URLs"),
        ("ftp://u:CANARY@host/a.tar?sig=CANARY", "unknown URL scheme 'ftp'"),
        ("S3://bucket/a.tar", "unknown URL scheme 'S3'"),
        ("https://host/a.tar?X-Amz-Signature=CANARY", "signed or parametrised"),
        ("https://host/a.tar?", "signed or parametrised"),
        ("s3://bucket/a.tar?X-Amz-Signature=CANARY", "signed or parametrised"),
        ("s3://bucket/a.tar?versionId=CANARY", "signed or parametrised"),
        ("abfs://c@account.dfs.core.windows.net/a?sv=1&sig=CANARY", "signed or parametrised"),
        ("s3://user:CANARY@bucket/a.tar", "credentials in URLs"),
        ("s3://CANARY@bucket/a@b.tar", "credentials in URLs"),
        ("s3://key:CANARY/CANARY@bucket/a.tar", "credentials in URLs"),
        ("http://key:CANARY/CANARY@host/a.tar", "credentials in URLs"),
        ("https://user:CANARY@host/a.tar", "credentials in URLs"),
        ("https://CANARY@host@127.0.0.1/a.tar", "credentials in URLs"),
        ("abfs://container:CANARY@account.dfs.core.windows.net/a", "credentials in URLs"),
        ("s3://", "must name a bucket"),
        ("s3:///a.tar", "must name a bucket"),
    ],
)
def test_refused_url(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        canonical(url)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/a?b=c.tar", "/data/a?b=c.tar"),
        ("s3://k:CANARY@bucket/a@b.tar", "s3://bucket/a@b.tar"),
        ("s3://bucket/a.tar?X-Amz-Signature=CANARY", "s3://bucket/a.tar"),
        ("s3://bucket/a-?.tar", "s3://bucket/a-?.tar"),
        ("https://k:CANARY@host/a?CANARY#CANARY", "https://host/a"),
        ("https://host?CANARY", "https://host"),
        ("abfs://container@account/a?sig=CANARY", "abfs://container@account/a"),
        ("abfs://container:CANARY@account/a", "abfs://container@account/a"),
        ("zip://x::https://k:CANARY@host/a?CANARY", "zip://x::https://host/a"),
        ("pipe:curl https://k:CANARY@host/a?CANARY", "pipe:curl https://host/a"),
    ],
)
def test_redacted_url(url: str, expected: str) -> None:
    assert redact(url) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no URL here: a@b?c=d", "no URL here: a@b?c=d"),
        (
            "at 'https://k:CANARY@host/a?CANARY', twice https://host/b?CANARY",
            "at 'https://host/a', twice https://host/b",
        ),
        ("a b?X-Amz-Signature=CANARY&x=1 &Signature=CANARY", "a b?X-Amz-Signature=...&x=1 &Signature=..."),
        ("x-amz-security-token=CANARY; sig=CANARY", "x-amz-security-token=... sig=..."),
    ],
)
def test_redacted_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_schemes() -> None:
    urls = ["a/b", "file:///a", "s3://a/b", "gs://a/b", "hf://datasets/a/b/c", "http://a/b"]
    assert [scheme_of(url) for url in urls] == ["file", "file", "s3", "gs", "hf", "http"]


def test_joined_names() -> None:
    assert join("s3://bucket/out/", "tokens", "a.parquet") == "s3://bucket/out/tokens/a.parquet"
    assert join("out", "job.json") == f"file://{CWD}/out/job.json"


def test_local_paths() -> None:
    assert local_path("file:///a/b") == Path("/a/b") == local_path("/a/b")
    assert local_path("s3://a/b") is None
