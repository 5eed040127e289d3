"""The files of Ray's cluster launcher, in the schemas of Ray and of EC2, and what must be true of them."""

import json
from typing import Any

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.starts import check_flags, flags_of
from tests.support.commands import ROOT

INFRA = ROOT / "infra"
FILES = {cloud: yaml.safe_load((INFRA / cloud / "cluster.yaml").read_text()) for cloud in ("aws", "gcp")}


@pytest.fixture(params=FILES)
def launcher(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(json.dumps(FILES[request.param]))


def test_launcher_file_is_of_rays_schema(launcher: dict[str, Any]) -> None:
    validate_config(prepare_config(launcher))


def test_key_that_does_not_exist_is_found(launcher: dict[str, Any]) -> None:
    launcher["docker"]["imagee"] = "x"
    with pytest.raises(Exception, match="imagee"):
        validate_config(prepare_config(launcher))


def test_head_does_no_work_and_the_dashboard_is_private(launcher: dict[str, Any]) -> None:
    head = launcher["available_node_types"][launcher["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    [command] = [line for line in launcher["head_start_ray_commands"] if "ray start" in line]
    flags = check_flags(flags_of(command))
    assert (flags["--num-cpus"], flags["--dashboard-host"]) == ("0", "127.0.0.1")
    assert "--head" in flags
    assert launcher["provider"]["use_internal_ips"]


def test_every_start_demands_the_token(launcher: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        [command] = [line for line in launcher[key] if "ray start" in line]
        assert command.startswith("RAY_AUTH_MODE=token ")
        check_flags(flags_of(command))
    assert any(path.endswith(".ray/auth_token") for path in launcher["file_mounts"])


def test_workers_are_spot_with_gpus_and_only_while_shards_wait(launcher: dict[str, Any]) -> None:
    [workers] = [kind for name, kind in launcher["available_node_types"].items() if name != launcher["head_node_type"]]
    assert workers["resources"]["GPU"] == 1
    assert workers["min_workers"] == 0
    assert "spot" in json.dumps(workers["node_config"]).lower()
    assert "spot" not in json.dumps(launcher["available_node_types"]["head"]["node_config"]).lower()


def ec2() -> Any:
    return get_session().create_client("ec2", "us-east-1").meta.service_model


@pytest.mark.parametrize("name", FILES["aws"]["available_node_types"])
def test_aws_nodes_are_what_ec2_takes(name: str) -> None:
    node = FILES["aws"]["available_node_types"][name]["node_config"]
    shape = ec2().operation_model("RunInstances").input_shape
    errors = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
    assert not errors.has_errors(), errors.generate_report()
    assert ParamValidator().validate({**node, "Imagee": 1, "MinCount": 1, "MaxCount": 1}, shape).has_errors()
    assert node["MetadataOptions"]["HttpTokens"] == "required", "IMDSv2"
    assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])


def test_actions_of_the_launcher_policy_exist() -> None:
    known = {f"ec2:{name}" for name in ec2().operation_names} | {"iam:PassRole"}
    policy = json.loads((INFRA / "iam" / "launcher.json").read_text())
    actions = {action for entry in policy["Statement"] for action in _listed(entry["Action"])}
    assert actions <= known
    for entry in policy["Statement"]:
        changes = not all(action.startswith("ec2:Describe") for action in _listed(entry["Action"]))
        assert not changes or entry["Condition"], entry["Sid"]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
