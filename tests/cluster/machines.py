"""Machines within this one, for tests: each has a network, mounts, processes and a name of its own, and an sshd.

They see this machine's system folders and the environment that runs the tests, read-only, and none of its homes,
checkouts and temporary files. All of it ends with the process that holds it, whatever happens: no namespace has a name.
"""

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parents[2]
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
ENVIRONMENT = Path(sys.prefix).resolve()
BIN = ENVIRONMENT / "bin"
SSHD = Path("/usr/sbin/sshd")
NETWORK = "10.77.0"
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "rsync", "git")
SYSTEM = {"bin", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "tmp", "usr", "var"}
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
SSHD_CONFIG = """\
ListenAddress {address}
HostKey {home}/.sshd/key
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
"""


def obstacle() -> str | None:
    """Why this machine cannot hold others; None: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, for namespaces"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + [str(SSHD)] * (not SSHD.exists())
    if missing:
        return f"needs {', '.join(missing)} (Debian: openssh-server, rsync, iproute2, util-linux, git)"
    bridge = ["ip", "link", "add", "bridge0", "type", "bridge"]
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", *bridge], capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Network:
    """A switch, to which machines are plugged in, and the processes of servers that they all reach at `address`."""

    address = f"{NETWORK}.254"

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> "Network":
        self._switch = subprocess.Popen([*WITH_PARENT, "unshare", "--net", "sleep", "infinity"])
        wait_for(lambda: _namespace(self._switch.pid) != _namespace(os.getpid()), "the network")
        for line in ("link set lo up", "link add bridge0 type bridge", "link set bridge0 up",
                     f"addr add {self.address}/24 dev bridge0"):  # fmt: skip
            self._ip(line)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._processes, self._switch):
            process.kill()
            process.wait()

    def plug_in(self, pid: int, address: str) -> None:
        """A cable from the switch to the network of a process."""
        cable = f"cable{address.rpartition('.')[2]}"
        self._ip(f"link add {cable} type veth peer name eth0 netns {pid}")
        self._ip(f"link set {cable} master bridge0 up")
        for line in (f"addr add {address}/24 dev eth0", "link set eth0 up"):
            subprocess.run(["nsenter", "-t", str(pid), "--net", "ip", *line.split()], check=True)

    def serve(self, command: Iterable[str], port: int, log: IO[str]) -> None:
        """Run a server in this network until it is taken down, once it listens."""
        inside = [*WITH_PARENT, "nsenter", "-t", str(self._switch.pid), "--net", *command]
        self._processes.append(subprocess.Popen(inside, stdout=log, stderr=log))
        wait_for(lambda: port in listening(self._switch.pid), command)

    def _ip(self, line: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._switch.pid), "--net", "ip", *line.split()], check=True)


class Machine:
    """One machine, running from `start` to `stop`.

    Attributes:
        home: the home folder of its only user, as seen from outside.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.folder, self.home = folder / name, folder / name / "home"

    def start(self, network: Network, names: Mapping[str, str], keys: str) -> None:
        """Switch it on.

        Args:
            names: address of each machine by its name.
            keys: those that its sshd lets in.
        """
        self._write_home(keys)
        script = self.folder / "start.sh"
        script.write_text("\n".join(self._steps(names)))
        with (self.folder / "console").open("a") as console:
            self._outer = subprocess.Popen(
                [*WITH_PARENT, "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-e", script],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        wait_for(lambda: psutil.Process(self._outer.pid).children(), f"{self.name}'s first process")
        (first,) = psutil.Process(self._outer.pid).children()
        self.pid = first.pid
        network.plug_in(self.pid, self.address)
        (self.home / "plugged-in").touch()
        wait_for(lambda: 22 in listening(self.pid), f"{self.name}'s sshd", self._console)

    def stop(self) -> None:
        """Cut its power: every process ends at once."""
        if self._outer.poll() is None:  # else its number may be another's by now
            os.kill(self.pid, signal.SIGKILL)
            self._outer.wait()

    def command(self, *command: str, at: str = "", env: Mapping[str, str] | None = None) -> list[str]:
        """What runs a command there, in a folder below the home, with nothing of this process's environment."""
        plain = {"HOME": HOME, "USER": "root", "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                 "LANG": "C.UTF-8", **(env or {})}  # fmt: skip
        into = ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", "--uts", "--ipc"]
        given = [f"{name}={value}" for name, value in plain.items()]
        return [*into, "env", "-i", f"--chdir={HOME / at}", *given, *command]

    def run(
        self,
        *command: str,
        code: int | None = 0,
        at: str = "",
        env: Mapping[str, str] | None = None,
        seconds: int = 120,
    ) -> str:
        """Standard output and error of a command there, which must end with `code`; None: with any."""
        done = subprocess.run(
            self.command(*command, at=at, env=env), text=True, timeout=seconds, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert code in (None, done.returncode), f"{self.name}: {command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _write_home(self, keys: str) -> None:
        for name in (".ssh", ".sshd"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
            (self.home / name).chmod(0o700)
        (self.home / "plugged-in").unlink(missing_ok=True)
        if not (self.home / ".sshd/key").exists():
            make_key(self.home / ".sshd/key")
        (self.home / ".ssh/authorized_keys").write_text(keys)
        (self.home / ".sshd/config").write_text(SSHD_CONFIG.format(address=self.address, home=HOME))

    def _steps(self, names: Mapping[str, str]) -> Iterable[str]:
        """The shell script that is its first process: its own view of the file system, then sshd."""
        kept = {ENVIRONMENT: ENVIRONMENT, Path(sys.base_prefix): Path(sys.base_prefix), self.home: HOME}
        yield f"hostname {self.name}; ip link set lo up; mount -t tmpfs tmpfs /mnt"
        for number, source in enumerate(kept):
            yield f"mkdir /mnt/{number}; mount --bind {_q(source)} /mnt/{number}"
        for folder in sorted(_hidden()):
            yield f"test ! -d {_q(folder)} || mount -t tmpfs -o mode=1777 tmpfs {_q(folder)}"
        for number, target in reversed(list(enumerate(kept.values()))):
            yield f"mkdir -p {_q(target)}; mount --bind /mnt/{number} {_q(target)}"
            if target != HOME:
                yield f"mount -o remount,bind,ro {_q(target)}"
        if Path(sys.prefix) != ENVIRONMENT:
            yield f"mkdir -p {_q(Path(sys.prefix).parent)}; ln -sfn {_q(ENVIRONMENT)} {_q(sys.prefix)}"
        hosts = ["127.0.0.1 localhost", f"127.0.1.1 {self.name}"]  # the latter as Debian's installer writes it
        hosts += [f"{address} {name}" for name, address in names.items() if name != self.name]
        yield f"printf '%s\\n' {' '.join(map(shlex.quote, hosts))} > /mnt/hosts; mount --bind /mnt/hosts /etc/hosts"
        yield f"mkdir -p /run/sshd; until test -e {HOME}/plugged-in; do sleep 0.02; done"
        yield f"exec {SSHD} -D -e -f {HOME}/.sshd/config"

    def _console(self) -> str:
        return (self.folder / "console").read_text()


def _hidden() -> set[Path]:
    """This machine's homes, checkouts and temporary files."""
    found = {HOME, Path("/tmp"), Path("/var/tmp"), Path("/run"), Path("/dev/shm")}
    for folder in (ROOT, ENVIRONMENT.parent, Path(sys.prefix).parent):
        found.add(folder if folder.parts[1] in SYSTEM else Path("/", folder.parts[1]))
    return {folder for folder in found if not any(other in folder.parents for other in found)}


def _q(path: object) -> str:
    return shlex.quote(str(path))


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def listening(pid: int) -> set[int]:
    """The ports that anything listens at in the network of a process, IPv4."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A"}


def wait_for(
    condition: Callable[[], object],
    what: object,
    details: Callable[[], str] = str,
    seconds: float = 30,
    every: float = 0.02,
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s\n{details()}"
        time.sleep(every)
