"""KubeRay's RayJob and RayCluster, version ray.io/v1: the fields that we use, and no other.

Written down from the CRDs of KubeRay 1.7 (ray-operator/config/crd/bases, Apache-2.0); our files were held to those CRDs
themselves once, with unknown fields refused. What lies inside pods is Kubernetes' own schema, of its Python client.
"""

from typing import Literal

from kubernetes.client import models
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secret_name: str | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: int | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    template: models.V1PodTemplateSpec


class WorkerGroup(Strict):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str]
    template: models.V1PodTemplateSpec


class ClusterSpec(Strict):
    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int
    active_deadline_seconds: int
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    ray_cluster_spec: ClusterSpec


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: models.V1ObjectMeta
    spec: ClusterSpec


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: models.V1ObjectMeta
    spec: JobSpec
