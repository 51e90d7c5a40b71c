"""The shell commands that make a node of a cluster: its environment, Ray on it, and what watches over it."""

from pipeline.cluster.recipe import (
    ENVIRONMENT,
    NODE_CACHE,
    OPEN_FILES,
    PORT,
    REMOTE,
    SPOT_SECONDS,
    TOKEN,
    VENV,
    Command,
    Local,
    Versions,
)

IMAGES_OWN = "/opt/dlami/nvme"  # where the deep learning images mount it


def packages() -> list[Command]:
    """What the system must have, by Debian's names."""
    apt = "sudo apt-get -qq -o DPkg::Lock::Timeout=600"
    return [Command(text=f"{apt} update && {apt} install -y git python3-venv")]


def token() -> list[Command]:
    return [Command(text=f"chmod 700 ~/.ray && chmod 600 {TOKEN}")]


def environment(versions: Versions) -> list[Command]:
    """A virtual environment with the dependencies alone, in the versions of constraints.txt."""
    install = f"~/uv/bin/uv pip install --quiet --python {VENV} -c {REMOTE}/constraints.txt"
    return [
        Command(text=f"python3 -m venv ~/uv && ~/uv/bin/pip install --quiet uv=={versions.uv}",
                why="uv, because the system has another Python than constraints.txt is for."),
        Command(text=f"~/uv/bin/uv venv --quiet --allow-existing --python {versions.python} {VENV} && "
                f"{install} -r {REMOTE}/pyproject.toml --extra s3"),
    ]  # fmt: skip


def autoscaler() -> list[Command]:
    """What the head needs to ask AWS for machines."""
    install = f"~/uv/bin/uv pip install --quiet --python {VENV} -c {REMOTE}/constraints.txt"
    return [Command(text=f"{install} boto3")]


def given(venv: str) -> list[Command]:
    """Nothing is installed: say at once where the environment is not what it must be."""
    ray = f"{venv}/bin/python -c 'import ray, s3fs, dvc' && git --version"
    return [Command(text=ray, why="The machines have their environment already; here it is only looked for.")]


def shell(venv: str = VENV) -> list[Command]:
    """The environment of the launcher's own shells (`ray exec`, `ray attach`, `ray down`), once."""
    mark = f"# Ray of {venv}"
    return [Command(text=f"grep -qF '{mark}' ~/.bashrc || echo '{exported(venv)} {mark}' >> ~/.bashrc")]


def exported(venv: str = VENV, **more: str) -> str:
    """`export …` of what Ray's processes, and so the jobs that they start, find in their environment."""
    values = " ".join(f"{name}={value}" for name, value in {**ENVIRONMENT, **more}.items())
    return f'export PATH="{venv.replace("~", "$HOME", 1)}/bin:$PATH" {values}'


def disk() -> list[Command]:
    """A folder for `compute.cache` on every node, which only the workers' instance store is mounted on."""
    return [Command(text=f'sudo install -d -o "$USER" {NODE_CACHE}')]


def instance_store() -> list[Command]:
    """The NVMe instance store as the node's cache; its content is encrypted by the hardware, and dies with it."""
    find = "lsblk -dpno NAME,MODEL | awk '/Instance Storage/ {print $1; exit}'"
    return [
        Command(
            text=f"if mountpoint -q {NODE_CACHE}; then true; "
            f"elif mountpoint -q {IMAGES_OWN}; then sudo mount --bind {IMAGES_OWN} {NODE_CACHE}; "
            f'elif disk=$({find}) && [ -n "$disk" ]; then sudo mkfs.ext4 -qF "$disk" && '
            f'sudo mount -o noatime,nodev,nosuid "$disk" {NODE_CACHE}; '
            "else echo 'no instance store: the cache is on the root disk'; fi && "
            f'sudo chown "$USER" {NODE_CACHE}',
            why="For `compute.cache`: the disk that the instance type brings along, where the image mounts it or not.",
        )
    ]


def stop() -> list[Command]:
    return [Command(text="ray stop")]


def head_start(options: str, venv: str = VENV, **more: str) -> list[Command]:
    """Ray's own processes on the head. Its dashboard and job server are reached through SSH alone."""
    ray = f"ray start --head --port={PORT} --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml"
    return [*stop(), Command(text=f"{_limits()} {exported(venv, **more)}; {ray}{options}", why=_THREADS)]


def worker_start(options: str, venv: str = VENV) -> list[Command]:
    ray = f"ray start --address=$RAY_HEAD_IP:{PORT}"
    return [*stop(), Command(text=f"{_limits()} {exported(venv)}; {ray}{options}")]


def spot_watch(venv: str = VENV) -> list[Command]:
    """Started on every worker: on one that is no spot instance, no notice ever comes."""
    watch = f"{venv}/bin/python {REMOTE}/spot_watch.py --address $RAY_HEAD_IP:{PORT} --seconds {SPOT_SECONDS}"
    return [
        Command(
            text=f"{exported(venv)}; nohup setsid {watch} > ~/spot_watch.log 2>&1 < /dev/null & disown",
            why="Drains the node when EC2 says that it takes it back, so that training moves before it is gone.",
        )
    ]


_THREADS = (
    "The launcher's shell sets OMP_NUM_THREADS=1 for all that Ray starts; unset, Ray gives a worker a thread for each "
    "CPU."
)


def _limits() -> str:
    return f"ulimit -n {OPEN_FILES}; unset OMP_NUM_THREADS;"


def local_options(local: Local, *, head: bool) -> str:
    """Options of `ray start` for given machines, beginning with a space."""
    cpus = local.head_cpus if head else local.worker_cpus
    options = [f"--node-ip-address={local.head}"] if head else []
    options += [f"--num-cpus={cpus}"] if cpus is not None else []
    options += ["--num-gpus=0"] if head and not cpus else []
    if local.object_store_mib is not None:
        options.append(f"--object-store-memory={local.object_store_mib * 2**20}")
    return "".join(f" {option}" for option in options)
