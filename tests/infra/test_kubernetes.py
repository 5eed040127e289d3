"""The Kubernetes files, in the schemas of Kubernetes and KubeRay, and what must be true of them."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import models
from pydantic import BaseModel, ValidationError

from pipeline.config import resolve
from tests.infra.kuberay import ClusterSpec, RayCluster, RayJob
from tests.infra.starts import check_flags
from tests.support.commands import ROOT

FILES = sorted((ROOT / "infra" / "kubernetes").glob("*.yaml"))
KINDS: dict[str, type[BaseModel]] = {
    "ServiceAccount": models.V1ServiceAccount,
    "PodDisruptionBudget": models.V1PodDisruptionBudget,
    "NetworkPolicy": models.V1NetworkPolicy,
    "ConfigMap": models.V1ConfigMap,
    "RayCluster": RayCluster,
    "RayJob": RayJob,
}
API = {
    "ServiceAccount": "v1",
    "ConfigMap": "v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


ALL = [document for path in FILES for document in documents(path)]
NAMED = {f"{document['kind']} {document['metadata']['name']}": document for document in ALL}


def clusters() -> list[ClusterSpec]:
    job, cluster = NAMED["RayJob tokenmill"], NAMED["RayCluster tokenmill"]
    return [RayJob.model_validate(job).spec.ray_cluster_spec, RayCluster.model_validate(cluster).spec]


@pytest.mark.parametrize("name", NAMED)
def test_document_is_of_its_schema(name: str) -> None:
    document = NAMED[name]
    assert document["apiVersion"] == API[document["kind"]]
    KINDS[document["kind"]].model_validate(document)


def test_field_that_does_not_exist_is_found() -> None:
    document = documents(ROOT / "infra" / "kubernetes" / "raycluster.yaml")[0]
    document["spec"]["workerGroupSpecs"][0]["template"]["spec"]["toleration"] = []
    with pytest.raises(ValidationError, match="toleration"):
        RayCluster.model_validate(document)


@pytest.mark.parametrize("spec", clusters(), ids=["RayJob", "RayCluster"])
def test_cluster_keeps_its_promises(spec: ClusterSpec) -> None:
    assert spec.ray_version == version("ray")
    assert spec.auth_options.mode == "token"
    assert spec.head_group_spec.ray_start_params["num-cpus"] == "0", "no work where its loss ends the job"
    [workers] = spec.worker_group_specs
    assert workers.min_replicas == 0
    pod = workers.template.spec
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} == {one.key for one in pod.tolerations}
    assert pod.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    for group in (spec.head_group_spec, workers):
        check_flags([f"--{name}={value}" for name, value in group.ray_start_params.items()])
        check_pod(group.template)


def check_pod(template: models.V1PodTemplateSpec) -> None:
    """Not root, no rights to gain, an identity of its own, memory behind /dev/shm."""
    pod, [container] = template.spec, template.spec.containers
    assert NAMED[f"ServiceAccount {pod.service_account_name}"]
    assert pod.security_context.run_as_non_root
    assert not container.security_context.allow_privilege_escalation
    volumes = {volume.name: volume for volume in pod.volumes}
    places = {mount.mount_path: volumes[mount.name] for mount in container.volume_mounts}
    assert places["/dev/shm"].empty_dir.medium == "Memory"
    assert container.resources.limits == container.resources.requests, "else the kernel may end it for others' sake"
    assert template.metadata.labels == NAMED["NetworkPolicy tokenmill"]["spec"]["podSelector"]["matchLabels"]


def test_job_runs_the_job_file_that_is_mounted_and_can_be_tried_again(tmp_path: Path) -> None:
    job = RayJob.model_validate(NAMED["RayJob tokenmill"]).spec
    assert job.entrypoint == "tokenmill run /etc/tokenmill/job.yaml --json"
    assert job.shutdown_after_job_finishes
    assert (job.backoff_limit, job.ttl_seconds_after_finished) == (2, 600)
    head = job.ray_cluster_spec.head_group_spec.template.spec
    assert any(mount.mount_path == "/etc/tokenmill" for mount in head.containers[0].volume_mounts)
    [config] = [volume.config_map.name for volume in head.volumes if volume.config_map]
    (tmp_path / "job.yaml").write_text(NAMED[f"ConfigMap {config}"]["data"]["job.yaml"])
    found = resolve(tmp_path / "job.yaml", environment={})
    found.check_complete()
    assert found.cluster.gpus_per_actor == 1
    limits = job.ray_cluster_spec.worker_group_specs[0].template.spec.containers[0].resources.limits
    assert str(found.cluster.cpus_per_actor) == limits["cpu"]


def test_head_is_not_evicted() -> None:
    budget = NAMED["PodDisruptionBudget tokenmill-head"]["spec"]
    assert budget["maxUnavailable"] == 0
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "head"
