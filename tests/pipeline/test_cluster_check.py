"""`cluster check`: every planted mistake is named with its key and line, and the project's own files have none."""

import socket
from pathlib import Path

import pytest
from cluster_files import AWS, CRON, FILES, JOB, LOCAL, ROOT, Plant, copied, planted

from pipeline.__main__ import main
from pipeline.cluster.check import check

NODE = "available_node_types.head.node_config"
SPOT = "available_node_types.gpu_spot"
HEAD_START, WORKER_START = "head_start_ray_commands", "worker_start_ray_commands"
EC2_ID = "available_node_types.gpu_spot.node_config"
ENV = 'export PATH="$HOME/venv/bin:$PATH" RAY_AUTH_MODE=token'
WORKER_LINE = (
    f"- >-\n    ulimit -n 65536; unset OMP_NUM_THREADS; {ENV}\n    RAY_USAGE_STATS_ENABLED=0; ray start --address"
)
GROUP = "spec.rayClusterSpec.workerGroupSpecs.0"
HEAD_POD = "spec.rayClusterSpec.headGroupSpec"

ON_AWS = [
    Plant("max_workers: 4\nidle", "max_worker: 4\nidle", "max_worker", "did you mean 'max_workers'", "max_worker: 4"),
    Plant("max_workers: 4\nidle", "idle", "max_workers", "missing", "# A Ray cluster"),
    Plant(
        "head_node_type: head", "head_node_type: header", "head_node_type", "must be one of", "head_node_type: header"
    ),
    Plant(
        "head_node_type: head", "head_node_type: [head]", "head_node_type", "is not of type", "head_node_type: [head]"
    ),
    Plant("GPU: 1}\n    min", "GPU: 0.5}\n    min", f"{SPOT}.resources.GPU", "not of type 'integer'", "GPU: 0.5"),
    Plant("  region:", "  regoin: x\n  region:", "provider.regoin", "did you mean 'region'", "regoin: x"),
    Plant(
        "  region: us-west-2", "  region: eu-west-1", "auth.ssh_proxy_command", "us-west-2, but", "ssh_proxy_command"
    ),
    Plant("  region:", "  aws_credentials: {}\n  region:", "provider.aws_credentials", "a role", "aws_credentials"),
    Plant(
        "internal_ips: true", "internal_ips: false", "provider.use_internal_ips", "expected true", "use_internal_ips"
    ),
    Plant("nodes: false", "nodes: true", "provider.cache_stopped_nodes", "expected false", "cache_stopped_nodes"),
    Plant("aws ssm start-session", "nc", "auth.ssh_proxy_command", "no port is open", "ssh_proxy_command"),
    Plant("ImageId", "ImageID", f"{NODE}.ImageID", "did you mean 'ImageId'", "ImageID"),
    Plant("ami-REPLACE_ME\n      Sub", "ami-12\n      Sub", f"{NODE}.ImageId", "an id such as ami-", "ImageId: ami-12"),
    Plant(
        "MarketType: spot", "MarketType: spott", f"{EC2_ID}.InstanceMarketOptions.MarketType", "EC2 knows no", "spott"
    ),
    Plant(
        "VolumeSize: 100",
        "VolumeSize: big",
        f"{NODE}.BlockDeviceMappings.0.Ebs.VolumeSize",
        "expected a integer",
        "big",
    ),
    Plant(
        "Encrypted: true", "Encrypted: false", f"{NODE}.BlockDeviceMappings.0.Ebs.Encrypted", "expected true", "Ebs:"
    ),
    Plant("gp3", "gp2", f"{NODE}.BlockDeviceMappings.0.Ebs.VolumeType", "expected gp3", "Ebs:"),
    Plant(
        "HttpTokens: required",
        "HttpTokens: optional",
        f"{NODE}.MetadataOptions.HttpTokens",
        "IMDSv2",
        "MetadataOptions",
    ),
    Plant("      SecurityGroupIds: [sg-REPLACE_ME]\n", "", f"{NODE}.SecurityGroupIds", "everyone in by SSH", "&node"),
    Plant(
        "{Name: vae-pipeline-worker}",
        "{Name: vae-pipeline-head}",
        f"{EC2_ID}.IamInstanceProfile",
        "the head's",
        "{Name: vae-pipeline-head}\n      InstanceMarketOptions",
    ),
    Plant(
        "      IamInstanceProfile: {Name: vae-pipeline-head}\n",
        "",
        f"{NODE}.IamInstanceProfile",
        "full rights on EC2 and S3",
        "&node",
    ),
    Plant(ENV, f"{ENV} RAY_AUTH_TOKEN=abc", "setup_commands.4", "a token of Ray's", "- >-\n    grep"),
    Plant("      ImageId", "      UserData: x\n      ImageId", f"{NODE}.UserData", "use setup_commands", "UserData"),
    Plant(
        "{CPU: 0, GPU: 0}",
        "{CPU: 4, GPU: 0}",
        "available_node_types.head.resources.CPU",
        "no training",
        "CPU: 4, GPU: 0",
    ),
    Plant("min_workers: 0", "min_workers: 9", "max_workers", "min_workers of all types come to 9", "max_workers: 4"),
    Plant("priority: 1", "priority: 0", f"{SPOT}.priority", "fallback", "priority: 0"),
    Plant(
        "dashboard-host=127.0.0.1",
        "dashboard-host=0.0.0.0",
        f"{HEAD_START}.1",
        "listens on 0.0.0.0",
        "- >-\n    ulimit",
    ),
    Plant(
        "    RAY_USAGE_STATS_ENABLED=0; ray start --head",
        "    ; ray start --head",
        f"{HEAD_START}.1",
        "RAY_USAGE_STATS_ENABLED=0",
        "- >-\n    ulimit",
    ),
    Plant(
        "ulimit -n 65536; unset OMP_NUM_THREADS; " + ENV,
        "ulimit -n 65536; export X=1",
        f"{HEAD_START}.1",
        "expected `export RAY_AUTH_MODE=token`",
        "- >-\n    ulimit",
    ),
    Plant(
        "head_start_ray_commands:\n  - ray stop\n",
        "head_start_ray_commands:\n",
        f"{HEAD_START}.0",
        "`ray stop`",
        ">-\n    ulimit",
    ),
    Plant(
        "ray start --address=$RAY_HEAD_IP:6379",
        "ray start --address=10.0.0.1:6379",
        f"{WORKER_START}.1",
        "expected --address=$RAY_HEAD_IP:",
        WORKER_LINE,
    ),
    Plant(
        "spot_watch.py --address", "watch.py --address", WORKER_START, "nothing watches", "worker_start_ray_commands"
    ),
    Plant("chmod 600", "chmod 644", "setup_commands", "expected `chmod 600", "setup_commands:"),
    Plant(
        "-c ~/vae-environment/constraints.txt boto3",
        "boto3",
        "head_setup_commands.0",
        "without constraints.txt",
        "- ~/uv/bin/uv pip",
    ),
    Plant(
        "constraints.txt boto3",
        "constraints.txt boto3 ray==2.59.0",
        "head_setup_commands.0",
        "constraints.txt has 2.60.0",
        "- ~/uv/bin/uv pip",
    ),
    Plant("/mnt/cache\n\nhead", '/mnt/cache; echo "\n\nhead', "setup_commands.5", "no valid shell", "- sudo install"),
    Plant("  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "file_mounts", "no ~/.ray/auth_token", "file_mounts:"),
    Plant(
        "cluster/spot_watch.py",
        "cluster/spot.py",
        "file_mounts.~/vae-environment/spot_watch.py",
        "no such file",
        "  ~/vae-environment/spot_watch.py",
    ),
    Plant(
        "constraints.txt: constraints.txt",
        "constraints.txt: .",
        "file_mounts.~/vae-environment/constraints.txt",
        "the whole folder",
        "  ~/vae-environment/constraints.txt",
    ),
    Plant(
        "cluster_name: vae",
        "metadata: {key: AKIA" + "A" * 16 + "}\ncluster_name: vae",
        "metadata.key",
        "looks like an AWS access key",
        "metadata:",
    ),
    Plant(
        "cluster_name: vae", "metadata: {from: '::/0'}\ncluster_name: vae", "metadata.from", "open to all", "metadata:"
    ),
    Plant("  type: aws", "  type: asw", "provider.type", "did you mean 'aws'", "type: asw"),
]
ON_GIVEN_MACHINES = [
    Plant("head_ip", "heda_ip", "provider.heda_ip", "did you mean 'head_ip'", "heda_ip", LOCAL),
    Plant(
        "[worker-1-REPLACE_ME, worker-2-R",
        "[worker-1-REPLACE_ME, worker-1-R",
        "provider.worker_ips.1",
        "named twice",
        "worker_ips",
        LOCAL,
    ),
    Plant("max_workers: 2", "max_workers: 3", "max_workers", "names 2", "max_workers: 3", LOCAL),
    Plant(" RAY_enable_autoscaler_v2=0", "", f"{HEAD_START}.1", "N-1 workers", "- >-\n    ulimit", LOCAL),
    Plant("--num-cpus=0", "", f"{HEAD_START}.1", "expected --num-cpus=0", "- >-\n    ulimit", LOCAL),
    Plant(
        "  type: local",
        "  type: local\n  coordinator_address: x:1",
        "provider.coordinator_address",
        "whoever reaches it",
        "coordinator_address",
        LOCAL,
    ),
]
ON_KUBERNETES = [
    Plant("kind: RayJob", "kind: RayJbo", "kind", "did you mean 'RayJob'", "kind: RayJbo", JOB),
    Plant("ray.io/v1", "ray.io/v1alpha1", "apiVersion", "expected ray.io/v1", "apiVersion", JOB),
    Plant("backoffLimit", "backofLimit", "spec.backofLimit", "did you mean 'backoffLimit'", "backofLimit", JOB),
    Plant(
        "mode: token", "mode: disabled", "spec.rayClusterSpec.authOptions.mode", "expected token", "authOptions", JOB
    ),
    Plant('"2.60.0"', '"2.59.0"', "spec.rayClusterSpec.rayVersion", "constraints.txt has 2.60.0", "rayVersion", JOB),
    Plant(
        "@sha256:digest-REPLACE_ME",
        ":latest",
        f"{HEAD_POD}.template.spec.containers.0.image",
        "a tag can change",
        "image:",
        JOB,
    ),
    Plant("ClusterIP", "LoadBalancer", f"{HEAD_POD}.serviceType", "expected ClusterIP", "serviceType", JOB),
    Plant(
        'num-cpus: "0"', 'num-cpus: "4"', f"{HEAD_POD}.rayStartParams.num-cpus", "no training", "rayStartParams", JOB
    ),
    Plant("minReplicas: 0", "minReplicas: 9", f"{GROUP}.minReplicas", "maxReplicas is 4", "minReplicas", JOB),
    Plant(
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        f"{HEAD_POD}.template.spec.containers.0.securityContext.runAsNonRoot",
        "expected true",
        "runAsNonRoot",
        JOB,
    ),
    Plant(
        "AfterJobFinishes: true",
        "AfterJobFinishes: false",
        "spec.shutdownAfterJobFinishes",
        "expected true",
        "shutdownAfter",
        JOB,
    ),
    Plant("30 2 * * *", "61 2 * * *", "spec.schedule", "minute: expected 0 to 59", "schedule:", CRON),
    Plant("Etc/UTC", "Etc/UCT2", "spec.timeZone", "no time zone", "timeZone", CRON),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"reached for the network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return copied(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_the_projects_own_files_have_no_mistake_and_only_placeholders_to_fill_in(project: Path, name: str) -> None:
    report = check(project / name, project)
    assert report.wrong == ()
    assert report.todo
    assert all("REPLACE_ME: fill in your own" in line for line in report.todo)


@pytest.mark.parametrize("plant", [*ON_AWS, *ON_GIVEN_MACHINES, *ON_KUBERNETES], ids=lambda p: f"{p.key}: {p.says}")
def test_a_planted_mistake_is_named_by_key_and_line(project: Path, plant: Plant) -> None:
    report, line = planted(project, plant)
    start = f"{project / plant.file}:{line}: {plant.key}: "
    assert any(said.startswith(start) and plant.says in said for said in report.wrong), (start, report.wrong)


def test_all_mistakes_are_told_at_once(project: Path) -> None:
    path = project / AWS
    text = path.read_text().replace("HttpTokens: required", "HttpTokens: optional").replace("gp3", "gp2")
    path.write_text(text.replace("chmod 600", "chmod 644"))
    told = "\n".join(check(path, project).wrong)
    assert "HttpTokens" in told
    assert "VolumeType" in told
    assert "setup_commands: expected `chmod 600" in told


def test_a_mistake_in_an_anchor_is_told_once_where_it_stands(project: Path) -> None:
    report, _ = planted(project, Plant("gp3", "gp2", "", "", "gp2"))
    assert len(report.wrong) == 1, report.wrong


def test_a_token_that_others_can_read_is_a_mistake_and_one_that_is_not_there_is_still_to_be_made(project: Path) -> None:
    token = project / "home/.ray/auth_token"
    token.chmod(0o644)
    assert "others can read the token; chmod 600" in "\n".join(check(project / AWS, project).wrong)
    token.unlink()
    report = check(project / AWS, project)
    assert report.wrong == ()
    assert any("no such file yet; make it: (umask 077" in line for line in report.todo)


def test_a_secret_is_not_shown(project: Path) -> None:
    secret = "AKIA" + "B" * 16
    report, _ = planted(
        project, Plant("cluster_name: vae", f"metadata: {{k: {secret}}}\ncluster_name: vae", "", "", secret)
    )
    assert secret not in "\n".join(report.wrong)


def test_the_command_exits_1_with_a_line_a_mistake(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(project)
    assert main(["cluster", "check"]) == 0
    told = capsys.readouterr()
    assert told.out == "cluster.yaml: ok (ray up, provider aws)\n"
    assert "warning: cluster.yaml:" in told.err
    assert main(["cluster", "check", "--strict"]) == 1
    assert "error: cluster.yaml:" in capsys.readouterr().err
    planted(project, Plant("gp3", "gp2", "", "", "gp2"))
    assert main(["cluster", "check", "cluster.yaml"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Ebs.VolumeType: expected gp3" in errors[0]
