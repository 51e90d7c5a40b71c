"""Checks of a RayJob or RayCronJob for KubeRay: its fields, its token, its versions, its schedule, its pods."""

import json
import re
import zoneinfo

from pipeline.cluster.cron import cron_mistake
from pipeline.cluster.findings import Config, Document, KeyPath, Problem, Problems, items, section
from pipeline.cluster.kuberay_schema import RAYCRONJOB, RAYJOB
from pipeline.cluster.launched import placeholders, secrets, versions
from pipeline.cluster.schema import schema_problems
from pipeline.errors import did_you_mean

KINDS = {"RayJob": RAYJOB, "RayCronJob": RAYCRONJOB}
API = "ray.io/v1"
_DIGEST = re.compile(r"\S+@sha256:([0-9a-f]{64}|digest-REPLACE_ME)")


def kuberay_problems(doc: Document) -> Problems:
    kind = doc.values.get("kind")
    if kind not in KINDS:
        yield Problem(("kind",), f"{kind!r}: expected RayJob or RayCronJob{did_you_mean(str(kind), KINDS)}")
        return
    if doc.values.get("apiVersion") != API:
        yield Problem(("apiVersion",), f"expected {API}, got {doc.values.get('apiVersion')!r}")
    yield from schema_problems(doc.values, KINDS[kind])
    if not {"name", "generateName"} & section(doc.values, "metadata").keys():
        yield Problem(("metadata", "name"), "missing; add it")
    job: KeyPath = ("spec", "jobTemplate") if kind == "RayCronJob" else ("spec",)
    if kind == "RayCronJob":
        yield from _schedule(section(doc.values, "spec"))
    yield from _job(section(doc.values, *job), job)
    yield from _cluster(doc, section(doc.values, *job, "rayClusterSpec"), (*job, "rayClusterSpec"))
    for check in (versions, secrets, placeholders):
        yield from check(doc)


def _schedule(spec: Config) -> Problems:
    schedule, zone = spec.get("schedule"), spec.get("timeZone")
    if isinstance(schedule, str) and (mistake := cron_mistake(schedule)) is not None:
        yield Problem(("spec", "schedule"), mistake)
    if isinstance(zone, str) and zone not in zoneinfo.available_timezones():
        near = did_you_mean(zone, zoneinfo.available_timezones())
        text = f"no time zone of this name: {zone}{near if 'did you mean' in near else '; such as Europe/Berlin'}"
        yield Problem(("spec", "timeZone"), text)


def _job(job: Config, at: KeyPath) -> Problems:
    if job.get("shutdownAfterJobFinishes") is not True:
        yield Problem((*at, "shutdownAfterJobFinishes"), "expected true: else the cluster stays when the job is done")
    if "activeDeadlineSeconds" not in job:
        yield Problem((*at, "activeDeadlineSeconds"), "missing: a job that hangs would never end; add it")
    if "rayClusterSpec" not in job and "clusterSelector" not in job:
        yield Problem((*at, "rayClusterSpec"), "missing: say what the job runs on")


def _cluster(doc: Document, cluster: Config, at: KeyPath) -> Problems:
    if not cluster:
        return
    if section(cluster, "authOptions").get("mode") != "token":
        yield Problem((*at, "authOptions", "mode"), "expected token: else whoever reaches the head runs code there")
    if cluster.get("rayVersion") != doc.pins.get("ray"):
        text = f"{cluster.get('rayVersion')!r}, but constraints.txt has {doc.pins.get('ray')}; make them the same"
        yield Problem((*at, "rayVersion"), text)
    head, place = section(cluster, "headGroupSpec"), (*at, "headGroupSpec")
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield Problem((*place, "serviceType"), "expected ClusterIP, which is not reached from outside")
    if head.get("enableIngress"):
        yield Problem((*place, "enableIngress"), "expected false: `kubectl port-forward` reaches the dashboard")
    if section(head, "rayStartParams").get("num-cpus") != "0":
        yield Problem((*place, "rayStartParams", "num-cpus"), 'expected "0", so that no training lands on the head')
    yield from _pod(section(head, "template", "spec"), (*place, "template", "spec"))
    for i, group in enumerate(items(cluster, "workerGroupSpecs")):
        yield from _group(section(group), (*at, "workerGroupSpecs", i))


def _group(group: Config, at: KeyPath) -> Problems:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield Problem((*at, "minReplicas"), f"{least}, but maxReplicas is {most}; lower it")
    if least:
        yield Problem((*at, "minReplicas"), "expected 0: workers come with the demand")
    yield from _pod(section(group, "template", "spec"), (*at, "template", "spec"))


def _pod(pod: Config, at: KeyPath) -> Problems:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield Problem((*at, key), "expected false: the pod would share it with the whole node")
    for i, container in enumerate(items(pod, "containers")):
        yield from _container(section(container), (*at, "containers", i))


def _container(container: Config, at: KeyPath) -> Problems:
    image = str(container.get("image", ""))
    if not _DIGEST.fullmatch(image):
        yield Problem((*at, "image"), f"{image or 'missing'}: expected NAME@sha256:…; a tag can change under a job")
    resources = section(container, "resources")
    for kind in ("limits", "requests"):
        for name in ("cpu", "memory"):
            if name not in section(resources, kind):
                yield Problem((*at, "resources", kind, name), "missing: Ray counts a node's resources by it; add it")
    locked = section(container, "securityContext")
    for key, wanted in (("allowPrivilegeEscalation", False), ("runAsNonRoot", True)):
        if locked.get(key) is not wanted:
            yield Problem((*at, "securityContext", key), f"expected {str(wanted).lower()}")
    if locked.get("privileged"):
        yield Problem((*at, "securityContext", "privileged"), "expected false: the pod could do all that the node can")
    for i, variable in enumerate(items(container, "env")):
        yield from _variable(section(variable), (*at, "env", i))


def _variable(variable: Config, at: KeyPath) -> Problems:
    name, value = str(variable.get("name", "")), str(variable.get("value", ""))
    if re.search(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY", name) and value:
        yield Problem((*at, "value"), f"{name}: whoever reads this file has it; use valueFrom.secretKeyRef")
    if name == "RAY_AUTH_MODE" and value != "token":
        yield Problem((*at, "value"), f"RAY_AUTH_MODE={value}: expected token, or nothing: authOptions sets it")
    if name == "PIPELINE_COMPUTE":
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            yield Problem((*at, "value"), 'PIPELINE_COMPUTE: expected a JSON object such as {"workers": 2}')
