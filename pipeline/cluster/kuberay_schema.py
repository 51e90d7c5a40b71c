"""The fields of KubeRay's RayJob and RayCronJob (ray.io/v1) as far as a job of this project can use them.

Compact, after the reference of KubeRay 1.6: its own schemas come with no package of an index and are 700 kB each,
nearly all of it the Pod of Kubernetes. Of that, a Pod's and a container's own keys are listed, and not what is below.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
ANY: Schema = {}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}


def _of(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _keys(names: str, **properties: Schema) -> Schema:
    return {**_of(), "properties": {**{name: ANY for name in names.split()}, **properties}}


def _many(item: Schema) -> Schema:
    return {"type": "array", "items": item}


QUANTITIES: Schema = {
    "type": "object",
    "additionalProperties": {
        "type": ["string", "integer", "number"],
        "pattern": r"^\d+(\.\d+)?(m|k|[KMGTPE]i?)?$",
    },
}
VARIABLE = _of(("name",), name=TEXT, value=TEXT, valueFrom=ANY)
CONTAINER = _keys(
    "args command envFrom imagePullPolicy lifecycle livenessProbe ports readinessProbe resizePolicy restartPolicy"
    " securityContext startupProbe stdin terminationMessagePath terminationMessagePolicy tty volumeDevices workingDir",
    name=TEXT, image=TEXT, env=_many(VARIABLE), resources=_of(limits=QUANTITIES, requests=QUANTITIES, claims=ANY),
    volumeMounts=_many(_of(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly=YES_NO, subPath=TEXT,
                           subPathExpr=TEXT, mountPropagation=TEXT, recursiveReadOnly=TEXT)),
)  # fmt: skip
POD = _keys(
    "affinity dnsConfig dnsPolicy enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID"
    " hostUsers hostname imagePullSecrets nodeName nodeSelector os overhead preemptionPolicy priority"
    " priorityClassName readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName"
    " schedulingGates securityContext setHostnameAsFQDN shareProcessNamespace subdomain tolerations"
    " topologySpreadConstraints volumes",
    activeDeadlineSeconds=COUNT, automountServiceAccountToken=YES_NO, serviceAccountName=TEXT, serviceAccount=TEXT,
    terminationGracePeriodSeconds=COUNT, initContainers=_many(CONTAINER),
    containers={**_many(CONTAINER), "minItems": 1},
)  # fmt: skip
TEMPLATE = _of(("spec",), metadata=ANY, spec={**POD, "required": ["containers"]})
HEAD_GROUP = _of(
    ("template", "rayStartParams"), template=TEMPLATE, rayStartParams=WORDS, headService=ANY, enableIngress=YES_NO,
    labels=WORDS, resources=WORDS, serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)  # fmt: skip
WORKER_GROUP = _of(
    ("template", "rayStartParams", "groupName", "minReplicas", "maxReplicas"), template=TEMPLATE, rayStartParams=WORDS,
    groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, idleTimeoutSeconds=COUNT, suspend=YES_NO,
    numOfHosts={"type": "integer", "minimum": 1}, scaleStrategy=ANY, labels=WORDS, resources=WORDS,
)  # fmt: skip
CLUSTER = _of(
    ("headGroupSpec",), headGroupSpec=HEAD_GROUP, workerGroupSpecs=_many(WORKER_GROUP), rayVersion=TEXT,
    authOptions=_of(mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=YES_NO),
    enableInTreeAutoscaling=YES_NO, suspend=YES_NO, managedBy=TEXT, headServiceAnnotations=WORDS, upgradeStrategy=ANY,
    gcsFaultToleranceOptions=ANY,
    autoscalerOptions=_of(idleTimeoutSeconds=COUNT, image=TEXT, imagePullPolicy=TEXT, resources=ANY, env=ANY,
                          envFrom=ANY, securityContext=ANY, volumeMounts=ANY, version={"enum": ["v1", "v2"]},
                          upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}),
)  # fmt: skip
JOB = _of(
    ("entrypoint",), entrypoint=TEXT, rayClusterSpec=CLUSTER, clusterSelector=WORDS, metadata=WORDS,
    runtimeEnvYAML=TEXT, jobId=TEXT, activeDeadlineSeconds={"type": "integer", "minimum": 1}, backoffLimit=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]}, submitterPodTemplate=ANY,
    submitterConfig=ANY, shutdownAfterJobFinishes=YES_NO, ttlSecondsAfterFinished=COUNT, suspend=YES_NO,
    deletionStrategy=ANY, managedBy=TEXT, entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT, preRunningDeadlineSeconds=COUNT,
)  # fmt: skip
METADATA = _of(
    name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 47},
    generateName={"type": "string", "pattern": r"^[a-z0-9][-a-z0-9.]*$", "maxLength": 42},
    namespace=TEXT, labels=WORDS, annotations=WORDS,
)  # fmt: skip
RAYJOB = _of(("apiVersion", "kind", "metadata", "spec"), apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=JOB)
RAYCRONJOB = _of(
    ("apiVersion", "kind", "metadata", "spec"), apiVersion=TEXT, kind=TEXT, metadata=METADATA,
    spec=_of(("schedule", "jobTemplate"), schedule=TEXT, timeZone=TEXT, suspend=YES_NO, jobTemplate=JOB),
)  # fmt: skip
