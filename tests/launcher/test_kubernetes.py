"""Manifests: each valid by Kubernetes' own published schemas, and each saying what it must."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from comms.certificates import issue
from dist_train.config import Config, ConfigError, load, parse
from dist_train.run_directory import RunDirectory
from launcher.cli import run
from launcher.kubernetes import KubernetesBackend, check, job_ends, manifests
from launcher.view import PlainView

TinyRun = Callable[..., Path]
VERSIONS = ("1.31", "1.33", "1.35")
SECTIONS = """
[launch]
backend = "kubernetes"
[kubernetes]
image = "registry.example/dist-train:1"
namespace = "training"
gpus = 2
storage_class = "fast"
[security]
mode = "tls"
certificates = "{certificates}"
[[replica]]
id = "weak"
pipeline = ["old1", "old2"]
"""


@pytest.fixture
def config(tiny_run: TinyRun, tmp_path: Path) -> Config:
    file = tiny_run(1)
    issue(tmp_path / "certs", ("coordinator", "operator", "a", "b", "weak"), 30)
    text = file.read_text().replace("layers = 1", "layers = 2")
    file.write_text(text + SECTIONS.format(certificates=tmp_path / "certs"))
    return load(file)


def by_kind(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(made["kind"], made["metadata"]["name"]): made for made in objects}


@pytest.mark.parametrize("with_secrets", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(config: Config, version: str, with_secrets: bool) -> None:
    objects = manifests(config, with_secrets=with_secrets)
    for made in objects:
        kubernetes_validate.validate(made, version, strict=True)
    assert [made["kind"] for made in objects] == [
        *("Service", "ConfigMap"),
        *("Secret", "PersistentVolumeClaim") * 4,
        *("Job",) * 4,
    ]


def test_what_a_pipelines_job_says(config: Config) -> None:
    job = by_kind(manifests(config, with_secrets=False))["Job", "tiny-weak"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 2, 2)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [
        *("python3", "-m", "launcher", "replica", "/run-directory", "--id", "weak"),
        *("--coordinator", "tiny-coordinator-0.tiny:7000", "--stage", "$(JOB_COMPLETION_INDEX)"),
    ]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
    }
    assert pod["subdomain"] == "tiny"
    assert by_kind(manifests(config, with_secrets=False))["PersistentVolumeClaim", "tiny-weak"]["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "20Gi"}},
        "storageClassName": "fast",
    }


def test_each_member_gets_its_own_key_and_nobody_elses(config: Config) -> None:
    objects = by_kind(manifests(config, with_secrets=True))
    for member in ("coordinator", "a", "b", "weak"):
        secret = objects["Secret", f"tiny-{member}"]
        assert sorted(secret["data"]) == sorted(["ca.pem", "run.token", f"{member}.pem", f"{member}.key"])
        volumes = objects["Job", f"tiny-{member}"]["spec"]["template"]["spec"]["volumes"]
        assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == [f"tiny-{member}"]


def test_the_config_of_the_pods_is_the_runs(config: Config) -> None:
    written = by_kind(manifests(config, with_secrets=False))["ConfigMap", "tiny-config"]["data"]["config.toml"]
    there = parse(tomllib.loads(written))
    assert there.digest() == config.digest()
    assert (there.run.directory, there.security.certificates) == ("/run-directory", "/keys")


def test_a_dry_run_prints_valid_yaml_and_no_secret(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path
) -> None:
    assert run(["launch", str(tmp_path / "tiny.toml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    objects = list(yaml.safe_load_all(printed))
    assert len(objects) == 14
    for made in objects:
        kubernetes_validate.validate(made, VERSIONS[-1], strict=True)
    assert "PRIVATE KEY" not in printed
    assert (tmp_path / "certs" / "run.token").read_text().strip() not in printed
    assert run(["launch", str(tmp_path / "tiny.toml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["backend"] == "kubernetes"
    assert [process["command"][:2] for process in plan["processes"]] == [["kubectl", "delete"], ["kubectl", "apply"]]
    assert len(list(yaml.safe_load_all(plan["files"]["manifests.yaml"]))) == 14


def test_without_kubectl_it_says_so(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["launch", str(tmp_path / "tiny.toml")]) == 1
    assert "there is no kubectl here" in capsys.readouterr().err


def test_what_kubectl_says_is_passed_on(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text("#!/bin/sh\necho 'The connection to the server was refused' >&2\nexit 1\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:/usr/bin:/bin")
    assert run(["launch", str(tmp_path / "tiny.toml")]) == 1
    assert "kubectl delete refuses: The connection to the server was refused" in capsys.readouterr().err


def test_how_jobs_stand() -> None:
    def job(member: str, **status: Any) -> dict[str, Any]:
        return {"metadata": {"labels": {"dist-train/member": member}}, "status": status}

    complete = [{"type": "Complete", "status": "True"}]
    failed = [{"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True"}]
    jobs = [job("coordinator", conditions=complete), job("a", conditions=failed), job("b", ready=1), job("c")]
    assert job_ends({"items": jobs}) == {"coordinator": "complete", "a": "failed", "b": "running", "c": "pending"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("security.mode=loopback", "never leaves a pod"),
        ("run.name=7up", '"7up-coordinator" can\'t be the name'),
        (f"run.name={'x' * 60}", "change run.name"),
    ],
)
def test_what_kubernetes_could_not_have_is_refused(config: Config, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(tmp_path / "tiny.toml", [override]))
    assert said in str(caught.value)


def test_an_image_is_needed(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="kubernetes.image"):
        KubernetesBackend(load(tiny_run(1), ["launch.backend=kubernetes"]), RunDirectory(Path("x")), PlainView())
