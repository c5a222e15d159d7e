"""The files that people deploy with are what their readers accept: checked against published schemas, and hadolint."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.test_setup import ComposeLoader

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def compose_schema() -> Any:
    """The Compose Specification's own schema, as check-jsonschema carries it."""
    return json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())


def test_the_dockerfile_is_hadolint_clean(repo: Path) -> None:
    done = subprocess.run([BIN / "hadolint", repo / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker/compose.cpu.yml", "docker/compose.devices.yml"])
def test_compose_files_follow_the_compose_specification(repo: Path, compose_schema: Any, name: str) -> None:
    document = yaml.load((repo / name).read_text(), Loader=ComposeLoader)
    jsonschema.validate(without_resets(document), compose_schema)


def without_resets(node: Any) -> Any:
    """What is left when compose has taken a `!reset` key away: the key is gone."""
    if isinstance(node, dict):
        return {key: without_resets(value) for key, value in node.items() if value is not None}
    return node


def test_a_compose_file_with_a_mistake_does_not_pass(repo: Path, compose_schema: Any) -> None:
    document = yaml.safe_load((repo / "docker-compose.yml").read_text())
    document["services"]["frcnn"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(document, compose_schema)


def test_monitoring_comes_only_when_it_is_asked_for_and_listens_on_this_host_alone(repo: Path) -> None:
    services = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    assert "profiles" not in services["frcnn"]


def test_every_setting_and_alert_is_in_the_operators_guide_with_its_default(repo: Path) -> None:
    guide = (repo / "docs/operations.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else str(field.default)
        assert f"| `{PREFIX}{name.upper()}` | {default} |" in guide, f"{name}: run make docs"
    for alert in re.findall(r"alert: (\w+)", (repo / "docker/prometheus/rules.yml").read_text()):
        assert f"| `{alert}` |" in guide, alert


def test_the_generated_tables_of_the_docs_are_up_to_date(repo: Path) -> None:
    command = [sys.executable, "-m", "tools.docs", "--check"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_manifests_follow_their_schemas(repo: Path) -> None:
    documents = list(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))
    assert {d["kind"] for d in documents} == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_manifest_with_a_mistake_does_not_pass(repo: Path) -> None:
    document = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_pod_outlives_its_drain_and_scales_on_the_queue(repo: Path) -> None:
    documents = {d["kind"]: d for d in yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain_seconds"].default
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "frcnn_queue_depth"


@pytest.fixture
def ray_service(repo: Path) -> Any:
    """The RayService: its kind's own schema is in no package, so its parts are checked, each by whoever reads it."""
    return yaml.safe_load((repo / "docker/kubernetes/frcnn-ray.yml").read_text())


def pod_templates(ray_service: Any) -> list[Any]:
    cluster = ray_service["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def as_deployment(template: Any) -> dict[str, Any]:
    """A Deployment of such pods, which Kubernetes's schema knows."""
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
    assert all(isinstance(value, str) for each in params for value in each.values())


@pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)
def test_rays_own_schema_and_our_builder_take_the_serve_config(ray_service: Any) -> None:
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


def test_every_pod_of_the_ray_service_has_the_front_and_runs_as_nobody(repo: Path, ray_service: Any) -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (repo / "requirements.lock").read_text(), re.MULTILINE))
    assert ray_service["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    for template in pod_templates(ray_service):
        [container] = template["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "service.server.ray_proxy:proxy_middlewares"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_image_says_what_it_was_made_of(repo: Path) -> None:
    dockerfile = (repo / "Dockerfile").read_text()
    for name in ("version", "revision", "created"):
        assert f"ARG {name.upper()}=" in dockerfile
        assert f'org.opencontainers.image.{name}="${name.upper()}"' in dockerfile


def test_a_cold_start_on_a_gpu_has_time(repo: Path) -> None:
    service = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]["frcnn"]
    assert service["healthcheck"]["start_period"] == "300s"
    assert "HEALTHCHECK --interval=10s --timeout=5s --start-period=300s" in (repo / "Dockerfile").read_text()
    plain = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))["spec"]["template"]
    probe = plain["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


def test_the_cache_has_a_volume_wherever_the_image_runs(repo: Path, ray_service: Any) -> None:
    folder = "/var/cache/frcnn"
    dockerfile = (repo / "Dockerfile").read_text()
    assert f"FRCNN_CACHE_DIR={folder}" in dockerfile
    assert f"VOLUME {folder}" in dockerfile
    assert f"TRITON_CACHE_DIR={folder}/" in dockerfile  # Docker's tmpfs on /tmp is noexec, and kernels are loaded
    service = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]["frcnn"]
    assert f"cache:{folder}" in service["volumes"]
    plain = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))["spec"]["template"]
    for template in (plain, *pod_templates(ray_service)):
        [container] = template["spec"]["containers"]
        assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]
