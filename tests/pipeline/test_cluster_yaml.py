"""cluster.yaml, checked offline: Ray's schema, EC2's own model of a launch request, and our security rules."""

import functools
import json
import re
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import ray
import yaml
from jsonschema import ValidationError
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CONSTRAINTS = ROOT / "constraints.txt"

PROVIDER_KEYS = {"type", "region", "use_internal_ips", "cache_stopped_nodes"}
PLACEHOLDER = re.compile(r"\b\w+-REPLACE_ME\b")
IDS = {"ImageId": "ami", "SubnetIds": "subnet", "SecurityGroupIds": "sg"}
REGION = re.compile(r"\b(?:af|ap|ca|cn|eu|il|me|mx|sa|us)(?:-[a-z]+)+-\d\b")
SECRETS = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|secret|password|RAY_AUTH_TOKEN=|PRIVATE KEY|\b[0-9a-f]{32,}\b", re.I)
STARTS = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}
SETUPS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
NEVER_UPLOADED = {"/.venv", "/.runs", "/.cache", "/data", "/models", "/.dvc/cache", "/.dvc/config.local", ".env"}

Config = dict[str, Any]
Pins = Mapping[str, str]


def load() -> Config:
    """A fresh copy without the objects that YAML's anchors share."""
    config: Config = json.loads(json.dumps(yaml.safe_load(TEXT)))
    return config


def read_pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;#]+)", text.lower(), re.MULTILINE))


def problems(config: Config, pins: Pins) -> list[str]:
    """What is wrong with a cluster configuration, one line each; empty: nothing."""
    try:
        validate_config(prepare_config(config))
    except (ValidationError, ValueError, KeyError) as error:
        return [f"schema: {str(error).splitlines()[0]}"]
    checks = (_provider, _sizes, _nodes, _head, _fallback, _starts, _token, _commands, _uploads, _strings)
    return [f"{where}: {text}" for check in checks for where, text in check(config, pins)]


Problems = Iterator[tuple[str, str]]


def _provider(config: Config, _: Pins) -> Problems:
    provider = config["provider"]
    for key in sorted(provider.keys() - PROVIDER_KEYS):
        yield f"provider.{key}", f"not one of {', '.join(sorted(PROVIDER_KEYS))}"
    if not provider.get("use_internal_ips"):
        yield "provider.use_internal_ips", "expected true: nodes are not reached from outside"
    if provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes", "expected false: a stopped node keeps its disk"
    auth = config.get("auth", {})
    if not auth.get("ssh_proxy_use_node_id") or "ssm start-session" not in auth.get("ssh_proxy_command", ""):
        yield "auth.ssh_proxy_command", "expected SSM: no port is open to SSH"
    for text in _texts(config):
        for region in REGION.findall(text):
            if region != provider["region"]:
                yield "provider.region", f"{provider['region']}, but {region} in {text!r}"


def _sizes(config: Config, _: Pins) -> Problems:
    for key in ("max_workers", "idle_timeout_minutes"):  # Ray fills in what is missing
        if not config.get(key):
            yield key, "missing or 0"


def _nodes(config: Config, _: Pins) -> Problems:
    head_profile = config["available_node_types"][config["head_node_type"]]["node_config"].get("IamInstanceProfile")
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        for text in _launch_problems(node):
            yield name, text
        for key, prefix in IDS.items():
            values = node.get(key) or []
            for value in [values] if isinstance(values, str) else values or ["none"]:
                if not re.fullmatch(rf"{prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}}|REPLACE_ME)", value):
                    yield f"{name}.{key}", f"expected {prefix}-..., got {value}"
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}.MetadataOptions.HttpTokens", "expected required (IMDSv2)"
        volumes = [mapping.get("Ebs", {}) for mapping in node.get("BlockDeviceMappings", [])]
        if not volumes or any(v.get("Encrypted") is not True or v.get("VolumeType") != "gp3" for v in volumes):
            yield f"{name}.BlockDeviceMappings", "expected encrypted gp3 volumes"
        if "IamInstanceProfile" not in node:
            yield f"{name}.IamInstanceProfile", "missing: Ray would make one with full rights to EC2 and S3"
        elif name != config["head_node_type"] and node["IamInstanceProfile"] == head_profile:
            yield f"{name}.IamInstanceProfile", "the head's: a worker must not launch instances"
        if "UserData" in node:
            yield f"{name}.UserData", "anyone on the node can read it; use setup_commands"


def _launch_problems(node: Config) -> Iterator[str]:
    shape = _run_instances()
    request = {key: value for key, value in node.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(request, shape)
    yield from report.generate_report().splitlines()
    if not report.has_errors():
        yield from _enum_problems(request, shape)


@functools.cache
def _run_instances() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _enum_problems(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    if shape.type_name == "structure":
        for key, item in value.items():
            yield from _enum_problems(item, shape.members[key], f"{path}.{key}")
    elif shape.type_name == "list":
        for item in value:
            yield from _enum_problems(item, shape.member, path)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path.lstrip('.')}: EC2 knows no {value!r}"


def _head(config: Config, _: Pins) -> Problems:
    head = config["available_node_types"][config["head_node_type"]]
    if head["resources"].get("CPU") != 0 or head["resources"].get("GPU") != 0:
        yield "head.resources", "expected CPU: 0 and GPU: 0, so that no training lands on it"
    if "InstanceMarketOptions" in head["node_config"]:
        yield "head.InstanceMarketOptions", "expected on-demand: the cluster dies with its head"
    if head.get("max_workers"):
        yield "head.max_workers", "expected 0"


def _fallback(config: Config, _: Pins) -> Problems:
    types = config["available_node_types"]
    on_demand = [t for n, t in types.items() if n != config["head_node_type"] and not _is_spot(t)]
    for name, spot in types.items():
        if spot.get("min_workers", 0):
            yield f"{name}.min_workers", "expected 0: an idle cluster keeps its head alone"
        same = [t for t in on_demand if t["resources"] == spot["resources"]]
        if _is_spot(spot) and not any(t.get("priority", 0) < spot.get("priority", 0) for t in same):
            yield f"{name}.priority", "expected an on-demand type with the same resources and a lower priority"


def _is_spot(node_type: Config) -> bool:
    return node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def _starts(config: Config, _: Pins) -> Problems:
    for key in STARTS.values():
        before, found, options = " ".join(config.get(key, [])).partition("ray start ")
        exports = set(" ".join(re.findall(r"export ([^;]*)", before)).split())
        for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "PYTHONPATH=/mnt/shared/vae-pipeline"):
            if not found or setting not in exports:
                yield key, f"expected `export {setting}` before `ray start`"
        if key == STARTS["head"] and "--dashboard-host=127.0.0.1" not in options.split():
            yield key, "expected --dashboard-host=127.0.0.1"
        hosts = re.findall(r"--dashboard-host[= ](\S+)", options)
        if set(hosts) - {"127.0.0.1"}:
            yield key, "the dashboard listens beyond loopback"


def _token(config: Config, _: Pins) -> Problems:
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        yield "file_mounts", "expected ~/.ray/auth_token: the launcher does not carry the token"
    if not any("chmod 600 ~/.ray/auth_token" in command for command in config.get("setup_commands", [])):
        yield "setup_commands", "expected chmod 600 ~/.ray/auth_token"


def _commands(config: Config, pins: Pins) -> Problems:
    commands = [command for key in SETUPS for command in config.get(key, [])]
    installs = [command for command in commands if re.search(r"uv pip install", command)]
    if not any("-r ~/upload/pyproject.toml" in command for command in installs):
        yield "setup_commands", "nothing installs the project's dependencies"
    for command in installs:
        if "-c ~/upload/constraints.txt" not in command:
            yield "setup_commands", f"installs without constraints.txt: {command}"
    for command in commands:
        for name, version in re.findall(r"([\w-]+)(?:\[[^]]*\])?==([\w.+]+)", command):
            if pins.get(name, version) != version:
                yield "setup_commands", f"{name}=={version}, but constraints.txt has {pins[name]}"
        if re.search(r"https?://|\.whl\b", command):
            yield "setup_commands", f"installs from outside the index: {command}"
    if pins.get("ray") != ray.__version__:
        yield "constraints.txt", f"ray=={pins.get('ray')}, but this Ray, which would run `ray up`, is {ray.__version__}"
    if not re.fullmatch(r"[\d.]+", pins.get("torch", "")):
        yield "constraints.txt", f"torch=={pins.get('torch')}: expected a version that PyPI has, with CUDA"


def _uploads(config: Config, _: Pins) -> Problems:
    excluded = set(config.get("rsync_exclude", []))
    for path in sorted(NEVER_UPLOADED - excluded):
        yield "rsync_exclude", f"expected {path}"
    for pattern in ("*.pem", "auth_token"):
        if pattern in excluded:
            yield "rsync_exclude", f"{pattern} would drop a file that the launcher itself copies"


def _strings(config: Config, _: Pins) -> Problems:
    for text in _texts(config):
        if re.search(r"\b0\.0\.0\.0\b|::/0", text):
            yield "open to all", text
        if SECRETS.search(text):
            yield "looks like a secret", text[:20]


def _texts(value: Any) -> Iterator[str]:
    """Every string of the configuration, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"reached for the network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    return read_pins(CONSTRAINTS.read_text(encoding="utf-8"))


def test_cluster_yaml_has_no_problems(pins: Pins) -> None:
    assert problems(load(), pins) == []


def test_python_is_one_that_the_project_supports_and_constraints_were_made_for() -> None:
    (version,) = set(re.findall(r"--python (3\.\d+)", TEXT))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SpecifierSet(project["requires-python"]).contains(f"{version}.0")
    stated = re.findall(r"^#.*\bpython(?:-version)?[ =]+(3\.\d+)", CONSTRAINTS.read_text("utf-8"), re.I | re.M)
    assert set(stated) <= {version}


def test_placeholders_are_those_that_the_header_lists() -> None:
    listed = set(PLACEHOLDER.findall("\n".join(line for line in TEXT.splitlines() if line.startswith("#"))))
    used = {name for text in _texts(load()) for name in PLACEHOLDER.findall(text)}
    assert listed == {"ami-REPLACE_ME", "subnet-REPLACE_ME", "sg-REPLACE_ME", "fs-REPLACE_ME"}
    assert used <= listed


def test_commands_are_valid_shell() -> None:
    config = load()
    commands = [command for key in (*SETUPS, *STARTS.values()) for command in config.get(key, [])]
    script = "".join(f"(\n{command}\n)\n" for command in commands)
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


DELETE = object()


def put(path: str, value: object) -> Callable[[Config], None]:
    """A change: the value at a dotted path, or `DELETE`."""

    def change(config: Config) -> None:
        *parents, leaf = path.split(".")
        node: Any = config
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        if value is DELETE:
            del node[leaf]
        else:
            node[leaf] = value

    return change


def swap(key: str, old: str, new: str) -> Callable[[Config], None]:
    """A change: `old` to `new` in every command or pattern of a list."""

    def change(config: Config) -> None:
        assert any(old in item for item in config[key]), f"{old!r} is not in {key}"
        config[key] = [item.replace(old, new) for item in config[key]]

    return change


NODE = "available_node_types.{}.node_config.{}"
HEAD, SPOT, DEMAND = (functools.partial(NODE.format, name) for name in ("head", "gpu_spot", "gpu_on_demand"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("max_worker", 4), "schema: Additional properties are not allowed ('max_worker'"),
        (put("head_node_type", "header"), "schema: `head_node_type` must be one of"),
        (put("available_node_types.gpu_spot.resources.GPU", 0.5), "schema: 0.5 is not of type 'integer'"),
        (put("available_node_types.gpu_spot.min_workers", 9), "schema: The specified global `max_workers` is smaller"),
        (put("provider.regoin", "us-west-2"), "provider.regoin: not one of"),
        (put("provider.aws_credentials", {}), "provider.aws_credentials: not one of"),
        (put("provider.region", "eu-west-1"), "provider.region: eu-west-1, but us-west-2 in"),
        (put("provider.use_internal_ips", False), "provider.use_internal_ips: expected true"),
        (put("provider.cache_stopped_nodes", DELETE), "provider.cache_stopped_nodes: expected false"),
        (put("auth.ssh_proxy_command", "nc %h %p"), "auth.ssh_proxy_command: expected SSM"),
        (put("auth", {"ssh_user": "ubuntu"}), "auth.ssh_proxy_command: expected SSM"),
        (put("max_workers", DELETE), "max_workers: missing or 0"),
        (put("idle_timeout_minutes", DELETE), "idle_timeout_minutes: missing or 0"),
        (put(SPOT("ImageID"), "ami-12345678"), 'gpu_spot: Unknown parameter in input: "ImageID"'),
        (put(SPOT("MetadataOptions.HttpToken"), "x"), 'Unknown parameter in MetadataOptions: "HttpToken"'),
        (put(SPOT("SecurityGroupIds"), "sg-12345678"), "Invalid type for parameter SecurityGroupIds"),
        (put(SPOT("InstanceType"), "g5.xlrage"), "gpu_spot: InstanceType: EC2 knows no 'g5.xlrage'"),
        (put(SPOT("InstanceMarketOptions.MarketType"), "sport"), "InstanceMarketOptions.MarketType: EC2 knows no"),
        (put(SPOT("BlockDeviceMappings.0.Ebs.VolumeType"), "gp9"), "Ebs.VolumeType: EC2 knows no 'gp9'"),
        (put(HEAD("ImageId"), DELETE), "head.ImageId: expected ami-..., got none"),
        (put(HEAD("ImageId"), "latest_dlami"), "head.ImageId: expected ami-..., got latest_dlami"),
        (put(DEMAND("SecurityGroupIds"), DELETE), "gpu_on_demand.SecurityGroupIds: expected sg-..., got none"),
        (put(SPOT("SubnetIds"), DELETE), "gpu_spot.SubnetIds: expected subnet-..., got none"),
        (put(DEMAND("MetadataOptions"), DELETE), "gpu_on_demand.MetadataOptions.HttpTokens: expected required"),
        (put(HEAD("MetadataOptions.HttpTokens"), "optional"), "head.MetadataOptions.HttpTokens: expected required"),
        (put(HEAD("BlockDeviceMappings"), DELETE), "head.BlockDeviceMappings: expected encrypted gp3"),
        (put(SPOT("BlockDeviceMappings.0.Ebs.Encrypted"), False), "gpu_spot.BlockDeviceMappings: expected encrypted"),
        (put(SPOT("BlockDeviceMappings.0.Ebs.VolumeType"), "gp2"), "gpu_spot.BlockDeviceMappings: expected encrypted"),
        (put(HEAD("IamInstanceProfile"), DELETE), "head.IamInstanceProfile: missing"),
        (put(SPOT("IamInstanceProfile"), DELETE), "gpu_spot.IamInstanceProfile: missing"),
        (put(SPOT("IamInstanceProfile.Name"), "vae-pipeline-head"), "gpu_spot.IamInstanceProfile: the head's"),
        (put(SPOT("UserData"), "#!/bin/sh"), "gpu_spot.UserData: anyone on the node can read it"),
        (put("available_node_types.head.resources", {}), "head.resources: expected CPU: 0"),
        (put("available_node_types.head.resources.CPU", 4), "head.resources: expected CPU: 0"),
        (put("available_node_types.head.max_workers", 1), "head.max_workers: expected 0"),
        (put(HEAD("InstanceMarketOptions"), {"MarketType": "spot"}), "head.InstanceMarketOptions: expected on-demand"),
        (put("available_node_types.gpu_spot.min_workers", 1), "gpu_spot.min_workers: expected 0"),
        (put("available_node_types.gpu_spot.priority", 0), "gpu_spot.priority: expected an on-demand type"),
        (put("available_node_types.gpu_on_demand", DELETE), "gpu_spot.priority: expected an on-demand type"),
        (put("available_node_types.gpu_on_demand.resources.GPU", 2), "gpu_spot.priority: expected an on-demand type"),
        (swap(STARTS["head"], "RAY_AUTH_MODE=token", ""), "head_start_ray_commands: expected `export RAY_AUTH_MODE"),
        (swap(STARTS["worker"], "RAY_AUTH_MODE=token", ""), "worker_start_ray_commands: expected `export RAY_AUTH"),
        (swap(STARTS["worker"], "=token", "=disabled"), "worker_start_ray_commands: expected `export RAY_AUTH_MODE"),
        (swap(STARTS["head"], "STATS_ENABLED=0", "STATS_ENABLED=1"), "expected `export RAY_USAGE_STATS_ENABLED=0`"),
        (swap(STARTS["worker"], "PYTHONPATH=", "PATH="), "worker_start_ray_commands: expected `export PYTHONPATH="),
        (put(STARTS["worker"], DELETE), "worker_start_ray_commands: expected `export RAY_AUTH_MODE=token`"),
        (swap(STARTS["head"], " --dashboard-host=127.0.0.1", ""), "expected --dashboard-host=127.0.0.1"),
        (swap(STARTS["head"], "127.0.0.1", "0.0.0.0"), "open to all: "),
        (swap(STARTS["head"], "=127.0.0.1", "=127.0.0.1 --dashboard-host=10.0.0.1"), "listens beyond loopback"),
        (put("file_mounts", {"~/upload": "."}), "file_mounts: expected ~/.ray/auth_token"),
        (swap("setup_commands", "chmod 600", "chmod 644"), "setup_commands: expected chmod 600"),
        (swap("setup_commands", "-r ~/upload/pyproject.toml", "ray"), "nothing installs the project's dependencies"),
        (swap("setup_commands", "-c ~/upload/constraints.txt", ""), "setup_commands: installs without constraints.txt"),
        (swap("head_setup_commands", "-c ~/upload/constraints.txt", ""), "installs without constraints.txt"),
        (swap("head_setup_commands", "boto3", "'ray[default]==2.59.0'"), "ray==2.59.0, but constraints.txt has"),
        (swap("head_setup_commands", "boto3", "https://x.org/ray.whl"), "installs from outside the index"),
        (swap("rsync_exclude", "/.dvc/config.local", "x"), "rsync_exclude: expected /.dvc/config.local"),
        (put("rsync_exclude", DELETE), "rsync_exclude: expected /.venv"),
        (swap("rsync_exclude", "__pycache__", "*.pem"), "rsync_exclude: *.pem would drop"),
        (put("metadata", {"rule": "::/0"}), "open to all: ::/0"),
        (put("metadata", {"key": "AKIA" + "A" * 16}), "looks like a secret: AKIA"),
        (put("metadata", {"token": "ab" * 32}), "looks like a secret: abab"),
        (swap(STARTS["head"], "RAY_AUTH_MODE", "RAY_AUTH_TOKEN=x RAY_AUTH_MODE"), "looks like a secret"),
    ],
)
def test_a_wrong_configuration_is_named(change: Callable[[Config], None], complaint: str, pins: Pins) -> None:
    config = load()
    change(config)
    found = problems(config, pins)
    assert any(complaint in problem for problem in found), found


@pytest.mark.parametrize(
    ("pin", "complaint"),
    [({"ray": "2.59.0"}, "constraints.txt: ray==2.59.0"), ({"torch": "2.13.0+cpu"}, "torch==2.13.0+cpu")],
)
def test_wrong_constraints_are_named(pin: Pins, complaint: str, pins: Pins) -> None:
    found = problems(load(), {**pins, **pin})
    assert any(complaint in problem for problem in found), found


def test_the_network_is_shut() -> None:
    with pytest.raises(AssertionError, match="reached for the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
