"""The Kubernetes manifests: they follow their schemas, and fit the settings of the service."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings


def test_kubernetes_manifests_follow_their_schemas(repo: Path) -> None:
    documents = list(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))
    assert {document["kind"] for document in documents} == {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_manifest_with_a_mistake_does_not_pass(repo: Path) -> None:
    document = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_termination_period_exceeds_the_drain_and_the_queue_scales(repo: Path) -> None:
    documents = {
        document["kind"]: document
        for document in yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text())
    }
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain_seconds"].default
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "frcnn_queue_depth"


@pytest.fixture
def ray_service(repo: Path) -> Any:
    """Return the RayService. No package has the schema of its kind, so its parts are checked one by one."""
    return yaml.safe_load((repo / "docker/kubernetes/frcnn-ray.yml").read_text())


def pod_templates(ray_service: Any) -> list[Any]:
    cluster = ray_service["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def as_deployment(template: Any) -> dict[str, Any]:
    """Return a Deployment of such pods, for which Kubernetes has a schema."""
    labels = {"app": "frcnn"}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, **template}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "frcnn"}, "spec": spec}


def test_the_pods_of_the_ray_service_follow_kubernetes_schema(ray_service: Any) -> None:
    for template in pod_templates(ray_service):
        kubernetes_validate.validate(as_deployment(template), "1.31", strict=True)
    broken = as_deployment(pod_templates(ray_service)[0])
    broken["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_the_ray_service_has_no_field_that_kuberay_does_not_read(ray_service: Any) -> None:
    """The names are those of KubeRay's Go types (ray.io/v1), of which no package carries the schema."""
    spec = ray_service["spec"]
    cluster = spec["rayClusterConfig"]
    assert (ray_service["apiVersion"], ray_service["kind"]) == ("ray.io/v1", "RayService")
    assert spec.keys() == {"serveConfigV2", "rayClusterConfig"}
    assert cluster.keys() == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    group = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert [worker.keys() for worker in cluster["workerGroupSpecs"]] == [group]
    params = [part["rayStartParams"] for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert all(isinstance(value, str) for start_params in params for value in start_params.values())


@pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)
def test_rays_schema_and_the_builder_accept_the_serve_config(ray_service: Any) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'frcnn-service[ray]'")
    from ray.serve.schema import ServeDeploySchema

    from service.server.ray_app import Scale, app

    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "service.server.ray_app:app"
    scale = Scale.model_validate(application.args)
    assert app(scale)
    [workers] = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (scale.min_replicas, scale.max_replicas) == (workers["minReplicas"], workers["maxReplicas"])
    [container] = workers["template"]["spec"]["containers"]
    assert scale.num_gpus == int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert scale.num_cpus <= int(container["resources"]["limits"]["cpu"])
    assert {"name": "metrics", "containerPort": scale.metrics_port} in container["ports"]


def test_every_pod_of_the_ray_service_has_the_middleware_and_no_root(repo: Path, ray_service: Any) -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (repo / "requirements.lock").read_text(), re.MULTILINE))
    assert ray_service["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    for template in pod_templates(ray_service):
        [container] = template["spec"]["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "service.server.ray_proxy:proxy_middlewares"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_pod_has_time_to_start_on_a_gpu(repo: Path) -> None:
    template = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))["spec"]["template"]
    probe = template["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


def test_every_pod_has_a_volume_for_its_cache(repo: Path, ray_service: Any) -> None:
    template = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))["spec"]["template"]
    for pod in (template, *pod_templates(ray_service)):
        [container] = pod["spec"]["containers"]
        assert "/var/cache/frcnn" in [mount["mountPath"] for mount in container["volumeMounts"]]
