"""The shipped policies of AWS: enough for a run, and no right to more. moto evaluates them, but for conditions.

Conditions (a listing's prefix, `s3:if-none-match` on parts) are left out here: no server at hand evaluates them.
"""

import json
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem

from pipeline.commit import probe
from pipeline.errors import UsageError
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage, StorageConfig
from pipeline.tokenize_shard import tokenize_shard
from tests.support.commands import ROOT
from tests.support.corpora import sample, write_shard
from tests.support.lines import production_line
from tests.support.stores import moto

pytestmark = pytest.mark.system
PLACES = {"INPUT_BUCKET": "input", "INPUT_PREFIX": "shards", "OUTPUT_BUCKET": "output", "OUTPUT_PREFIX": "run"}
ROLES = ("worker", "driver")
Client = Callable[..., dict]


def policy(role: str) -> dict:
    """A shipped policy, with its places filled in."""
    text = (ROOT / "infra" / "iam" / f"{role}.json").read_text()
    for name, place in PLACES.items():
        text = text.replace(name, place)
    return json.loads(text)


def without_conditions(document: dict) -> dict:
    """What is left of a policy for a server that knows no conditions: fewer denials, wider listings."""
    kept = [dict(one) for one in document["Statement"] if one["Effect"] == "Allow"]
    for statement in kept:
        statement.pop("Condition", None)
    return {**document, "Statement": kept}


@pytest.fixture(scope="module", params=ROLES)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Requests of somebody who has one of the policies: `client("get_object", Bucket=..., Key=...)`."""
    folder = tmp_path_factory.mktemp("moto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1000000")
        with moto(folder) as server:
            session = botocore.session.Session()
            root = partial(session.create_client, endpoint_url=server.endpoint, region_name="us-east-1")
            fill(root("s3", aws_access_key_id="root", aws_secret_access_key="root"), folder)
            key = somebody(root("iam", aws_access_key_id="root", aws_secret_access_key="root"), request.param)
            patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
            S3FileSystem.clear_instance_cache()  # clients look at the environment only when they are made
            from_now_on = urllib.request.Request(
                f"{server.endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
            )
            with urllib.request.urlopen(from_now_on):
                mine = session.create_client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
                yield lambda action, **arguments: getattr(mine, action)(**arguments)
            S3FileSystem.clear_instance_cache()


def fill(s3: Any, folder: Path) -> None:
    """Shards and old objects, inside and outside of what the policies name."""
    shard = write_shard(folder / "0.tar", {"a": sample(0, 0), "b": sample(0, 1)}).read_bytes()
    for bucket, names in {"input": ["shards/0.tar", "other/0.tar"], "output": ["run/tokens/old", "x/old"]}.items():
        s3.create_bucket(Bucket=bucket)
        for name in names:
            s3.put_object(Bucket=bucket, Key=name, Body=shard)


def somebody(iam: Any, role: str) -> dict[str, str]:
    """A user with one policy: the access key."""
    iam.create_user(UserName="somebody")
    document = json.dumps(without_conditions(policy(role)))
    iam.put_user_policy(UserName="somebody", PolicyName="shipped", PolicyDocument=document)
    return iam.create_access_key(UserName="somebody")["AccessKey"]


@pytest.mark.parametrize(
    ("action", "place"),
    [
        ("get_object", {"Bucket": "input", "Key": "other/0.tar"}),
        ("get_object", {"Bucket": "output", "Key": "x/old"}),
        ("put_object", {"Bucket": "input", "Key": "shards/0.tar"}),
        ("put_object", {"Bucket": "input", "Key": "shards/new"}),
        ("put_object", {"Bucket": "output", "Key": "x/new"}),
        ("delete_object", {"Bucket": "input", "Key": "shards/0.tar"}),
        ("delete_object", {"Bucket": "output", "Key": "run/tokens/old"}),
        ("delete_object", {"Bucket": "output", "Key": "run/job.json"}),
        ("delete_bucket", {"Bucket": "output"}),
        ("put_bucket_policy", {"Bucket": "output", "Policy": "{}"}),
    ],
)
def test_right_that_nobody_has(action: str, place: dict, client: Client) -> None:
    with pytest.raises(ClientError) as caught:
        client(action, **place)
    assert caught.value.response["Error"]["Code"] == "AccessDenied"


def test_shard_is_read_and_its_part_created(client: Client, tiny_model: Path) -> None:
    storage = Storage(StorageConfig(retry_seconds=2))
    with production_line(tiny_model, "s3://output/run", storage=storage) as line:
        report = tokenize_shard(freeze(storage, ["s3://input/shards/0.tar"])[0], line)
    assert report.counts.tokenized == 2
    assert len(storage.list_folder("s3://output/run/tokens", ".parquet")) == 1


def test_accounts_are_the_drivers(client: Client, request: pytest.FixtureRequest) -> None:
    storage = Storage(StorageConfig(retry_seconds=2))
    if request.node.callspec.params["client"] == "driver":
        probe(storage, "s3://output/run")
        storage.write("s3://output/run/_SUCCESS", b"")
        storage.delete("s3://output/run/_SUCCESS")
        assert [blob.url for blob in storage.list_folder("s3://output/run")] == []
    else:
        with pytest.raises(UsageError, match="permission denied"):
            storage.write("s3://output/run/summary.json", b"{}")


@pytest.mark.parametrize("role", ROLES)
def test_parts_can_be_created_but_not_replaced(role: str) -> None:
    denials = [one for one in policy(role)["Statement"] if one["Effect"] == "Deny"]
    assert [(one["Action"], one["Resource"]) for one in denials] == [
        ("s3:PutObject", "arn:aws:s3:::output/run/tokens/*")
    ]
    unconditional = {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}}
    assert denials[0]["Condition"] == unconditional
