"""What the roles of a cluster on AWS may do, and nothing else: IAM policies of the head and of the workers."""

from typing import Any

from pipeline.cluster.recipe import Aws

Policy = dict[str, Any]

RUNS, SHARDS, DVC = "runs", "shards", "dvc"  # below the cluster's prefix in the bucket
WHOLE = ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts")
READ = ("GetObject",)


def head_policy(aws: Aws) -> Policy:
    """To start, tag and end the workers of this cluster, to give them their role, and the whole of its prefix in S3."""
    return _policy(*_launch(aws), *_tag(aws), _terminate(aws), _pass_role(aws), _describe(),
                   *_objects(aws, "All", WHOLE, RUNS, SHARDS, DVC))  # fmt: skip


def worker_policy(aws: Aws) -> Policy:
    """Runs to write and read; shards and the DVC remote to read."""
    listed, *runs = _objects(aws, "Runs", WHOLE, RUNS)
    _, *rest = _objects(aws, "Data", READ, SHARDS, DVC)
    listed = {**listed, "Condition": _prefixes(aws, RUNS, SHARDS, DVC)}
    return _policy(listed, *runs, *rest)


def _launch(aws: Aws) -> list[Policy]:
    """RunInstances names all that takes part. The instance is the one that the conditions bind: type, role, IMDSv2."""
    instance = {
        "StringEquals": {
            "aws:RequestTag/ray-cluster-name": aws.name,
            "ec2:InstanceType": aws.worker,
            "ec2:MetadataHttpTokens": "required",
        },
        "ArnEquals": {"ec2:InstanceProfile": f"arn:aws:iam::{aws.account}:instance-profile/{aws.name}-worker"},
    }
    parts = [
        f"arn:aws:ec2:{aws.region}::image/{aws.image}",
        _ec2(aws, f"subnet/{aws.subnet}"),
        _ec2(aws, f"security-group/{aws.security_group}"),
        _ec2(aws, "key-pair/ray-autoscaler_*"),
        _ec2(aws, "network-interface/*"),
        _ec2(aws, "spot-instances-request/*"),
    ]
    encrypted = {"Bool": {"ec2:Encrypted": "true"}}
    return [
        _allow("LaunchWorkers", ["ec2:RunInstances"], [_ec2(aws, "instance/*")], instance),
        _allow("LaunchWithEncryptedDisks", ["ec2:RunInstances"], [_ec2(aws, "volume/*")], encrypted),
        _allow("LaunchFromTheseParts", ["ec2:RunInstances"], parts),
    ]


def _tag(aws: Aws) -> list[Policy]:
    launching = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    its_own = {
        "StringEquals": {"aws:ResourceTag/ray-cluster-name": aws.name},
        "ForAllValues:StringLike": {"aws:TagKeys": ["ray-*", "Name"]},
    }
    resources = [_ec2(aws, "instance/*"), _ec2(aws, "volume/*")]
    return [
        _allow("TagWhatIsLaunched", ["ec2:CreateTags"], resources, launching),
        _allow("TagItsOwn", ["ec2:CreateTags"], [_ec2(aws, "instance/*")], its_own),
    ]


def _terminate(aws: Aws) -> Policy:
    its_own = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": aws.name}}
    return _allow("TerminateItsOwn", ["ec2:TerminateInstances"], [_ec2(aws, "instance/*")], its_own)


def _pass_role(aws: Aws) -> Policy:
    to_ec2 = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    role = f"arn:aws:iam::{aws.account}:role/{aws.name}-worker"
    return _allow("GiveWorkersTheirRole", ["iam:PassRole"], [role], to_ec2)


def _describe() -> Policy:
    """The one resource "*": EC2's Describe actions know no other."""
    return _allow("SeeInstances", ["ec2:DescribeInstances"], ["*"])


def _objects(aws: Aws, what: str, actions: tuple[str, ...], *folders: str) -> list[Policy]:
    bucket = f"arn:aws:s3:::{aws.bucket}"
    inside = [f"{bucket}/{aws.name}/{folder}/*" for folder in folders]
    return [
        _allow("ListThePrefix", ["s3:ListBucket"], [bucket], _prefixes(aws, *folders)),
        _allow(f"{what}InThePrefix", [f"s3:{action}" for action in actions], inside),
    ]


def _prefixes(aws: Aws, *folders: str) -> Policy:
    names = [f"{aws.name}/{folder}" for folder in folders]
    return {"StringLike": {"s3:prefix": [pattern for name in names for pattern in (name, f"{name}/*")]}}


def _ec2(aws: Aws, resource: str) -> str:
    return f"arn:aws:ec2:{aws.region}:{aws.account}:{resource}"


def _allow(sid: str, actions: list[str], resources: list[str], condition: Policy | None = None) -> Policy:
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}
