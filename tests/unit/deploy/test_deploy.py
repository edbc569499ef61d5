"""The manifests in deploy/: they parse, agree with each other, and name what exists."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from service import deployment
from service.app import router
from workers.settings import WorkerSettings

DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture(scope="module")
def serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    return config


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_serve_config_is_valid_and_names_an_existing_builder(serve_config: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema.model_validate(serve_config).applications
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))


def test_kuberay_serves_the_same_application(
    serve_config: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    assert yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"]) == serve_config


def test_what_listens_everywhere_is_built_with_a_token_only(
    serve_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAUMERGE_TOKEN", raising=False)
    monkeypatch.setattr(deployment, "start_runner", lambda settings: None)
    (application,) = serve_config["applications"]
    assert serve_config["http_options"]["host"] == application["args"]["host"]
    with pytest.raises(ValueError, match="TAUMERGE_TOKEN"):
        deployment.application(application["args"])
    monkeypatch.setenv("TAUMERGE_TOKEN", "s3cret")
    assert deployment.application(application["args"])


def test_the_image_is_asked_for_its_health_by_a_method_that_is_answered() -> None:
    command = (DEPLOY / "Dockerfile").read_text().partition("HEALTHCHECK")[2]
    assert "/healthz" in command
    assert "--spider" not in command  # which sends HEAD
    (route,) = (route for route in router.routes if getattr(route, "path", "") == "/healthz")
    assert "GET" in getattr(route, "methods", ())


def test_kuberay_runs_the_ray_of_the_lock(manifests: dict[str, dict[str, Any]]) -> None:
    assert manifests["RayService"]["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")


def test_the_worker_group_offers_the_accelerator_that_the_settings_ask_for(
    manifests: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in manifests["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    (group,) = manifests["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # KubeRay passes the value to `ray start` inside double quotes of its own.
    resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
    assert f"accelerator_type:{WorkerSettings().accelerator_type}" in resources
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_every_pod_has_the_settings_the_secret_and_the_checkpoints(
    manifests: dict[str, dict[str, Any]],
) -> None:
    cluster = manifests["RayService"]["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert manifests["ConfigMap"]["data"]["TAUMERGE_STATE_DIR"].startswith("/checkpoints/")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["envFrom"] == [
            {"configMapRef": {"name": manifests["ConfigMap"]["metadata"]["name"]}},
            {"secretRef": {"name": "taumerge"}},
        ]
        (volume,) = pod["volumes"]
        claim = manifests["PersistentVolumeClaim"]["metadata"]["name"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/checkpoints"}]
