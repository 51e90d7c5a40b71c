"""Checks of a cluster on AWS: what EC2 would refuse, what would cost, and who could get in."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from pipeline.cluster.findings import Config, Document, KeyPath, Problem, Problems, items, section, texts
from pipeline.cluster.launched import commands
from pipeline.errors import UserError, did_you_mean

KEYS = {
    "type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "use_external_head_ip",
    "key_pair", "security_group", "aws_credentials", "cloudwatch", "disable_node_updaters",
    "disable_launch_config_check", "foreground_node_launch", "worker_liveness_check", "worker_rpc_drain",
}  # fmt: skip
REGION = re.compile(r"\b(?:af|ap|ca|cn|eu|il|me|mx|sa|us)(?:-[a-z]+)+-\d\b")
IDS = {"ImageId": "ami", "SubnetIds": "subnet", "SecurityGroupIds": "sg"}
NOT_HERE = {
    "aws_credentials": "whoever reads this file has them; use a role, or `aws configure`",
    "security_group": "Ray would make one that lets everyone in by SSH; use SecurityGroupIds",
}
LAUNCHERS_OWN = {"SubnetIds"}  # a key of Ray's, not of EC2's
LOOSE = {
    "ImageId": "missing: Ray would take an image of 2021; pin one by its id",
    "SecurityGroupIds": "missing: Ray would make a group that lets everyone in by SSH; name your own",
    "SubnetIds": "missing: Ray would take any subnet, public ones too; name your own",
    "IamInstanceProfile": "missing: Ray would make one with full rights on EC2 and S3; name your own",
}


def aws_problems(doc: Document) -> Problems:
    for check in (_provider, _regions, _login, _nodes, _head, _workers, _spot, _watched):
        yield from check(doc)


def _provider(doc: Document) -> Problems:
    provider = section(doc.values, "provider")
    for key in provider:
        if key not in KEYS:
            yield Problem(("provider", key), f"unknown key{did_you_mean(str(key), KEYS)}")
    if "region" not in provider:
        yield Problem(("provider", "region"), "missing; add it")
    for key, text in NOT_HERE.items():
        if key in provider:
            yield Problem(("provider", key), text)
    if provider.get("use_internal_ips") is not True:
        yield Problem(("provider", "use_internal_ips"), "expected true: no node needs an address that all can reach")
    if provider.get("cache_stopped_nodes", True) is not False:
        yield Problem(("provider", "cache_stopped_nodes"), "expected false: a stopped node's disk costs on")
    if not doc.values.get("idle_timeout_minutes"):
        yield Problem(("idle_timeout_minutes",), "missing: say after how many minutes an idle node goes")


def _regions(doc: Document) -> Problems:
    region = section(doc.values, "provider").get("region")
    for at, text in texts(doc.values):
        for other in REGION.findall(text) if at != ("provider", "region") else ():
            if other != region:
                yield Problem(at, f"{other}, but provider.region is {region}; make them the same")


def _login(doc: Document) -> Problems:
    auth = section(doc.values, "auth")
    if not auth.get("ssh_proxy_use_node_id") or "ssm start-session" not in str(auth.get("ssh_proxy_command", "")):
        text = "expected `aws ssm start-session …` and ssh_proxy_use_node_id: true, so that no port is open to SSH"
        yield Problem(("auth", "ssh_proxy_command"), text)


def _nodes(doc: Document) -> Problems:
    types = section(doc.values, "available_node_types")
    for name in types:
        at: KeyPath = ("available_node_types", name, "node_config")
        node = section(types, name, "node_config")
        yield from _as_ec2_sees_it(node, at)
        yield from _ids(node, at)
        yield from _closed(node, at)
        yield from _disks(node, at)


def _as_ec2_sees_it(node: Config, at: KeyPath) -> Problems:
    """The request against EC2's own model, which botocore carries."""
    request = {key: value for key, value in node.items() if key not in LAUNCHERS_OWN}
    yield from _shaped(request, _run_instances(), at)


@functools.cache
def _run_instances() -> Any:
    try:
        import botocore.session  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        remedy = "pip install -c constraints.txt botocore"
        raise UserError(f"cluster check: needs botocore, which carries EC2's own model; {remedy}") from None
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "long": (int,), "boolean": (bool,), "float": (int, float),
    "double": (int, float), "list": (list,), "structure": (dict,), "map": (dict,), "blob": (str,),
}  # fmt: skip


def _shaped(value: Any, shape: Any, at: KeyPath) -> Problems:
    """What a value has that EC2's model has not: an unknown key, a wrong type, a name that is none of the known."""
    kinds: tuple[Any, ...] = _TYPES.get(shape.type_name, (object,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
        yield Problem(at, f"expected a {shape.type_name}, got {value!r:.60}; EC2 would refuse it")
    elif shape.type_name == "structure":
        for key, item in value.items():
            if key not in shape.members:
                near = did_you_mean(str(key), shape.members)
                yield Problem((*at, key), f"EC2 knows no such key{near if 'did you mean' in near else ''}; correct it")
            else:
                yield from _shaped(item, shape.members[key], (*at, key))
    elif shape.type_name == "list":
        for i, item in enumerate(value):
            yield from _shaped(item, shape.member, (*at, i))
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield Problem(at, f"EC2 knows no {value!r}{did_you_mean(value, shape.enum)}"[:200])


def _ids(node: Config, at: KeyPath) -> Problems:
    if "NetworkInterfaces" in node:  # they carry subnet and groups
        needed = {key: text for key, text in LOOSE.items() if not key.endswith("Ids")}
    else:
        needed = LOOSE
    for key in ("SubnetIds", "SecurityGroupIds") if "NetworkInterfaces" in node else ():
        if key in node:
            yield Problem((*at, key), "Ray takes it from NetworkInterfaces, and refuses both; remove it")
    for key, text in needed.items():
        if not node.get(key):
            yield Problem((*at, key), text)
    for key, prefix in IDS.items():
        values = node.get(key) or []
        for i, value in enumerate([values] if isinstance(values, str) else values if isinstance(values, list) else []):
            if not re.fullmatch(rf"{prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}}|REPLACE_ME)", str(value)):
                place = (*at, key) if isinstance(values, str) else (*at, key, i)
                yield Problem(place, f"expected an id such as {prefix}-0123456789abcdef0, got {value!r}")


def _closed(node: Config, at: KeyPath) -> Problems:
    if section(node, "MetadataOptions").get("HttpTokens") != "required":
        place = (*at, "MetadataOptions", "HttpTokens")
        yield Problem(place, "expected required (IMDSv2): else a forged request reads the node's credentials")
    if "UserData" in node:
        yield Problem((*at, "UserData"), "every process of the node can read it; use setup_commands")
    for i, card in enumerate(items(node, "NetworkInterfaces")):
        if section(card).get("AssociatePublicIpAddress"):
            place = (*at, "NetworkInterfaces", i, "AssociatePublicIpAddress")
            yield Problem(place, "an address that all can reach; remove it")


def _disks(node: Config, at: KeyPath) -> Problems:
    disks = items(node, "BlockDeviceMappings")
    if not disks:
        yield Problem((*at, "BlockDeviceMappings"), "missing: the image's own disk would not be encrypted; add it")
    for i, disk in enumerate(disks):
        place: KeyPath = (*at, "BlockDeviceMappings", i, "Ebs")
        if "Ebs" in section(disk) and section(disk, "Ebs").get("Encrypted") is not True:
            yield Problem((*place, "Encrypted"), "expected true")
        if "Ebs" in section(disk) and section(disk, "Ebs").get("VolumeType", "gp2") == "gp2":
            yield Problem((*place, "VolumeType"), "expected gp3, which is faster than gp2 and costs less")


def _head(doc: Document) -> Problems:
    name = _head_name(doc)
    head, at = section(doc.values, "available_node_types", name), ("available_node_types", name)
    for kind in ("CPU", "GPU") if head else ():
        if section(head, "resources").get(kind) != 0:
            yield Problem((*at, "resources", kind), "expected 0, so that no training lands on the head")
    if "InstanceMarketOptions" in section(head, "node_config"):
        place = (*at, "node_config", "InstanceMarketOptions")
        yield Problem(place, "the cluster ends with its head; remove it, so that it is no spot instance")
    if head.get("max_workers"):
        yield Problem((*at, "max_workers"), "expected 0 or nothing: there is one head")


def _workers(doc: Document) -> Problems:
    types, head = section(doc.values, "available_node_types"), _head_name(doc)
    profile = section(types, head, "node_config").get("IamInstanceProfile")
    for name in types:
        at: KeyPath = ("available_node_types", name)
        if name == head:
            continue
        if section(types, name).get("min_workers"):
            yield Problem((*at, "min_workers"), "expected 0: an idle cluster keeps its head alone")
        if profile and section(types, name, "node_config").get("IamInstanceProfile") == profile:
            place = (*at, "node_config", "IamInstanceProfile")
            yield Problem(place, "the head's: a worker must not launch instances; give it one of its own")


def _spot(doc: Document) -> Problems:
    types, head = section(doc.values, "available_node_types"), _head_name(doc)
    on_demand = [section(types, name) for name in types if name != head and not _is_spot(section(types, name))]
    for name in types:
        spot = section(types, name)
        same = [other for other in on_demand if other.get("resources") == spot.get("resources")]
        at = ("available_node_types", name, "priority")
        if not _is_spot(spot) or name == head:
            continue
        if not same:
            text = "no on-demand type has the same resources: without spot capacity nothing would start; add one"
            yield Problem(("available_node_types", name), text)
        elif not any(_priority(other) < _priority(spot) for other in same):
            yield Problem(at, "expected above that of the on-demand type, which is to be the fallback")


def _watched(doc: Document) -> Problems:
    types = section(doc.values, "available_node_types")
    if any(_is_spot(section(types, name)) for name in types):
        if not any("spot_watch.py" in text for _, text in commands(doc, "worker_start_ray_commands")):
            text = "nothing watches for EC2 to take spot instances back; start spot_watch.py after `ray start`"
            yield Problem(("worker_start_ray_commands",), text)


def _head_name(doc: Document) -> str:
    """Of the head's node type; empty where it is no name, which the schema tells of."""
    name = doc.values.get("head_node_type")
    return name if isinstance(name, str) else ""


def _is_spot(node_type: Config) -> bool:
    return section(node_type, "node_config", "InstanceMarketOptions").get("MarketType") == "spot"


def _priority(node_type: Config) -> int:
    found = node_type.get("priority", 0)
    return found if isinstance(found, int) else 0
