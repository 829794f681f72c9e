"""A run as objects of Kubernetes: an Indexed Job for the coordinator and for each replica, and what they need.

    Service      headless: gives the coordinator's pod a name
    ConfigMap    the run's config
    Secret       for each member: what it alone shows of itself (`security.mode = "tls"`)
    Claim        for each member: its run directory, which outlives its pods
    Job          for each member; a pipeline's has an index for each stage

A replica whose pod dies leaves the run and joins again when the Job has made another; evictions and pre-emptions do not
count as failures, and a config error ends the Job at once. kubectl does the talking. Jobs are deleted at the end and on
Ctrl-C; claims stay, so that the same launch resumes the run.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import yaml

from dist_train.config import ConfigError
from launcher import members
from launcher.backend import Rendering
from launcher.failures import LaunchError
from launcher.members import COORDINATOR
from launcher.parcel import certificate_files
from launcher.supervisor import Command, Interrupted, Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dist_train.config import Config, ReplicaConfig
    from dist_train.run_directory import RunDirectory
    from launcher.view import View

MANIFESTS = "manifests.yaml"
RUN_DIRECTORY, KEYS = "/run-directory", "/keys"
# Kubernetes tells each pod of an Indexed Job which of them it is.
INDEX = "JOB_COMPLETION_INDEX"
LOOK_EVERY_S = 5.0
ANSWER_DEADLINE_S = 120.0
SILENCE_DEADLINE_S = 600.0
INTERRUPTED_CODE = 130
GRACE_S = 60
COORDINATOR_RESTARTS = 20
# A name of a pod's host is a label of 63; a Job appends the index.
MOST_NAME = 58
Manifest = dict[str, Any]


class KubernetesBackend:
    """The Jobs of one run, in one namespace."""

    def __init__(self, config: Config, directory: RunDirectory, view: View) -> None:
        check(config)
        self.config, self.directory, self.view = config, directory, view
        self._stack = ExitStack()
        self._supervisor = Supervisor()
        self._is_started = False

    def render(self) -> Rendering:
        """The manifests, with secrets left out; and the commands that apply them."""
        shown = yaml.safe_dump_all(manifests(self.config, with_secrets=False), sort_keys=False)
        said = "# Secrets are shown without their contents. dist-train launch sends them along.\n"
        commands = (self._kubectl("delete", "jobs", *self._selected), self._kubectl("apply", "--filename", "-"))
        log = self.directory.log("kubectl")
        return Rendering(tuple(Command("kubectl", c, log) for c in commands), ((MANIFESTS, said + shown),))

    def start(self) -> None:
        """Applies the manifests in place of those of an earlier launch. LaunchError in kubectl's words."""
        if shutil.which("kubectl") is None:
            raise LaunchError("there is no kubectl here; install it, or apply what --dry-run prints from elsewhere")
        self._stack.enter_context(self._supervisor.interrupts())
        # A Job can't be changed. What is there is of an earlier launch of this run, and its claims stay.
        self._ask("delete", "jobs", *self._selected)
        self._is_started = True
        applied = yaml.safe_dump_all(manifests(self.config, with_secrets=True), sort_keys=False)
        self._ask("apply", "--filename", "-", given=applied)
        namespace = self.config.kubernetes.namespace
        self.view.say(f"{self.config.run.name}: {1 + len(self.config.replica)} jobs applied in namespace {namespace}")

    def watch(self) -> int:
        """Says how the Jobs stand whenever that changes, until the coordinator's has ended; the exit code."""
        shown, silent_s, namespace = "", 0.0, self.config.kubernetes.namespace
        while True:
            try:
                jobs = json.loads(self._ask("get", "jobs", *self._selected, "--output", "json"))
                ends, silent_s = job_ends(jobs), 0.0
            except (LaunchError, ValueError):  # the API server may be away for a while; the Jobs go on
                ends, silent_s = {}, silent_s + LOOK_EVERY_S
            if silent_s > SILENCE_DEADLINE_S:
                raise LaunchError(f"kubectl has had no answer for {SILENCE_DEADLINE_S:g} s")
            told = ", ".join(f"{member} {end}" for member, end in ends.items())
            if told and told != shown:
                self.view.say(shown := told)
            match ends.get(COORDINATOR):
                case "complete":
                    self._is_started = False  # the replicas' end by themselves, and all logs stay
                    self.view.say(f"{self.config.run.name} is complete: all {self.config.rounds} rounds are committed")
                    return 0
                case "failed":
                    raise LaunchError(
                        f"{self.config.run.name} was stopped: its coordinator's job has failed; see "
                        f"kubectl logs --namespace {namespace} job/{name_of(self.config, COORDINATOR)}"
                    )
            if isinstance(self._supervisor.next_event(LOOK_EVERY_S), Interrupted):
                self.view.say("deleting the jobs; launch it again to resume")
                return INTERRUPTED_CODE

    def stop(self) -> None:
        """Deletes the Jobs of a run that goes on, and with them their pods; nothing else."""
        self._stack.close()
        if self._is_started:
            self._is_started = False
            self._ask("delete", "jobs", *self._selected)

    @property
    def _selected(self) -> tuple[str, ...]:
        return ("--selector", ",".join(f"{key}={value}" for key, value in _labels(self.config).items()))

    def _kubectl(self, verb: str, *arguments: str) -> tuple[str, ...]:
        return ("kubectl", verb, "--namespace", self.config.kubernetes.namespace, *arguments)

    def _ask(self, verb: str, *arguments: str, given: str | None = None) -> str:
        command = self._kubectl(verb, *arguments)
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, timeout=ANSWER_DEADLINE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LaunchError(f"kubectl {verb} has not ended within {ANSWER_DEADLINE_S:g} s") from None
        if done.returncode:
            raise LaunchError(f"kubectl {verb} refuses: {' '.join(done.stderr.split()) or done.returncode}")
        return done.stdout


def check(config: Config) -> None:
    """ConfigError, naming the key, when pods can't be made of it."""
    members.replica_ids(config)
    if config.kubernetes.image is None:
        raise ConfigError('launch.backend = "kubernetes", and kubernetes.image names no container image')
    if config.security.mode == "loopback":
        raise ConfigError(
            'launch.backend = "kubernetes", and security.mode = "loopback" never leaves a pod: use "tls" '
            '(dist-train certs makes what it needs), or "insecure" on a network that you trust'
        )
    names = [name_of(config, member) for member in (COORDINATOR, "config", *members.replica_ids(config))]
    for name in names:
        if len(name) > MOST_NAME or not name[0].isalpha() or names.count(name) > 1:
            raise ConfigError(
                f'"{name}" can\'t be the name of one object of Kubernetes (at most {MOST_NAME} letters, digits, "-"; '
                "first a letter; each once): change run.name or replica.id"
            )


def manifests(config: Config, *, with_secrets: bool) -> list[Manifest]:
    """All objects of the run, in the order in which they are applied. ConfigError when a certificate can't be read."""
    replicas = {replica.id: replica for replica in config.replica}
    everybody: list[tuple[str, ReplicaConfig | None]] = [(COORDINATOR, None), *replicas.items()]
    made = [_service(config), _config_map(config)]
    for member, replica in everybody:
        if config.security.mode == "tls":
            made.append(_secret(config, member, with_contents=with_secrets))
        if _is_kept(config):
            made.append(_claim(config, member, shared=replica is not None and bool(replica.pipeline)))
    return made + [_job(config, member, replica) for member, replica in everybody]


def name_of(config: Config, member: str) -> str:
    """The name of a member's objects: RUN-MEMBER, as Kubernetes allows names."""
    return _kubernetes_name(f"{config.run.name}-{member}")


def job_ends(jobs: Manifest) -> dict[str, str]:
    """How each member's Job stands, by what `kubectl get jobs --output json` says: complete, failed, running, …"""
    ends = {}
    for job in jobs.get("items", []):
        member = job["metadata"]["labels"]["dist-train/member"]
        status = job.get("status", {})
        conditions = {c["type"] for c in status.get("conditions", []) if c.get("status") == "True"}
        ends[member] = (
            "complete"
            if "Complete" in conditions
            else "failed"
            if "Failed" in conditions
            else "running"
            if status.get("ready")
            else "pending"
        )
    return ends


def _service(config: Config) -> Manifest:
    ports = [{"name": "rounds", "port": config.kubernetes.port}]
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _labels(config), "ports": ports}
    return _object(config, "v1", "Service", _kubernetes_name(config.run.name), spec=spec)


def _config_map(config: Config) -> Manifest:
    """The config as pods see it: its folders are theirs."""
    run = config.run.model_copy(update={"directory": RUN_DIRECTORY})
    security = config.security.model_copy(update={"certificates": KEYS, "token_file": None})
    there = config.model_copy(update={"run": run, "security": security})
    return _object(config, "v1", "ConfigMap", name_of(config, "config"), data={"config.toml": there.to_toml()})


def _secret(config: Config, member: str, *, with_contents: bool) -> Manifest:
    files = certificate_files(config, member)
    if not with_contents:
        return _object(
            config,
            "v1",
            "Secret",
            name_of(config, member),
            type="Opaque",
            stringData={name: f"<the content of {path}>" for name, path in files},
        )
    try:
        data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files}
    except OSError as error:
        raise ConfigError(f'security.mode = "tls", but {error.filename}: {error.strerror}') from None
    return _object(config, "v1", "Secret", name_of(config, member), type="Opaque", data=data)


def _claim(config: Config, member: str, *, shared: bool) -> Manifest:
    spec: Manifest = {
        "accessModes": ["ReadWriteMany" if shared else "ReadWriteOnce"],
        "resources": {"requests": {"storage": config.kubernetes.storage}},
    }
    if config.kubernetes.storage_class:
        spec["storageClassName"] = config.kubernetes.storage_class
    return _object(config, "v1", "PersistentVolumeClaim", name_of(config, member), spec=spec)


def _job(config: Config, member: str, replica: ReplicaConfig | None) -> Manifest:
    pods = len(replica.processes) if replica is not None else 1
    restarts = config.launch.restarts * pods if replica is not None else COORDINATOR_RESTARTS
    spec = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": restarts,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "member", "operator": "In", "values": [2]},
                },
            ]
        },
        "template": {
            "metadata": {"labels": _labels(config) | {"dist-train/member": member}},
            "spec": _pod(config, member, replica),
        },
    }
    made = _object(config, "batch/v1", "Job", name_of(config, member), spec=spec)
    made["metadata"]["labels"]["dist-train/member"] = member
    return made


def _pod(config: Config, member: str, replica: ReplicaConfig | None) -> Manifest:
    volumes: list[Manifest] = [
        {
            "name": "run-directory",
            **(
                {"persistentVolumeClaim": {"claimName": name_of(config, member)}}
                if _is_kept(config)
                else {"emptyDir": {}}
            ),
        },
        {"name": "config", "configMap": {"name": name_of(config, "config")}},
    ]
    if config.security.mode == "tls":
        secret = {"secretName": name_of(config, member), "defaultMode": 0o400}
        volumes.append({"name": "keys", "secret": secret})
    return {
        "restartPolicy": "Never",
        "subdomain": _kubernetes_name(config.run.name),
        "terminationGracePeriodSeconds": GRACE_S,
        "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(config, member, replica)],
        "volumes": volumes,
    }


def _container(config: Config, member: str, replica: ReplicaConfig | None) -> Manifest:
    kubernetes = config.kubernetes
    mounts: list[Manifest] = [
        {"name": "run-directory", "mountPath": RUN_DIRECTORY, "subPathExpr": f"rank-$({INDEX})"},
        {"name": "config", "mountPath": f"{RUN_DIRECTORY}/config.toml", "subPath": "config.toml", "readOnly": True},
    ]
    if config.security.mode == "tls":
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    container = {
        "name": "member",
        "image": kubernetes.image,
        "command": list(_command(config, replica)),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": _resources(config, replica),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    return container | _probes(config, member, replica)


def _command(config: Config, replica: ReplicaConfig | None) -> Iterable[str]:
    python, port = config.kubernetes.python, config.kubernetes.port
    if replica is None:
        return (*members.launcher(python=python), "coordinate", RUN_DIRECTORY, "--address", f"0.0.0.0:{port}")
    coordinator = f"{name_of(config, COORDINATOR)}-0.{_kubernetes_name(config.run.name)}:{port}"
    stage = ("--stage", f"$({INDEX})") if replica.pipeline else ()
    run = (*members.launcher(replica.ranks, python), "replica", RUN_DIRECTORY, "--id", replica.id)
    return (*run, "--coordinator", coordinator, *stage)


def _resources(config: Config, replica: ReplicaConfig | None) -> Manifest:
    if replica is None:  # it holds no tensor
        return {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}
    kubernetes = config.kubernetes
    gpus = {kubernetes.gpu_resource: str(kubernetes.gpus)} if kubernetes.gpus else {}
    requests = {"cpu": kubernetes.cpu, "memory": kubernetes.memory}
    return {"requests": requests | gpus, "limits": {"memory": kubernetes.memory} | gpus}


def _probes(config: Config, member: str, replica: ReplicaConfig | None) -> Manifest:
    """The coordinator's port; of a replica, that it has begun to count what it sends.

    Whether a replica goes on living is the coordinator's business (`exchange.liveness_deadline_s`).
    """
    if replica is None:
        port = {"tcpSocket": {"port": config.kubernetes.port}, "timeoutSeconds": 5}
        return {
            "startupProbe": port | {"periodSeconds": 5, "failureThreshold": 60},
            "livenessProbe": port | {"periodSeconds": 60, "failureThreshold": 5},
        }
    is_alone = replica.ranks == 1 and not replica.pipeline
    rank = "" if is_alone else f".${INDEX}" if replica.pipeline else ".0"
    begun = ["sh", "-c", f'test -e "{RUN_DIRECTORY}/ledger/{member}{rank}.jsonl"']
    return {"startupProbe": {"exec": {"command": begun}, "periodSeconds": 10, "failureThreshold": 90}}


def _object(config: Config, version: str, kind: str, name: str, **content: Any) -> Manifest:
    metadata = {"name": name, "namespace": config.kubernetes.namespace, "labels": _labels(config)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _labels(config: Config) -> dict[str, str]:
    return {"app.kubernetes.io/name": "dist-train", "app.kubernetes.io/instance": _kubernetes_name(config.run.name)}


def _is_kept(config: Config) -> bool:
    return bool(config.kubernetes.storage)


def _kubernetes_name(name: str) -> str:
    """A DNS label; names that differ in what a label can't hold are a ConfigError of `check`."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
