"""Run several hosts with a standalone Spark cluster on one machine, as network namespaces on a bridge.

Each host has its own address, loopback device and Spark directories. Files are shared, as on a cluster with a network
file system. Host 0 runs the Spark master and the drivers; every other host runs a Spark worker. Requires Linux, root
and iproute2.

From a shell, use ``scripts/cluster``. In tests: ``with Hosts(folder) as hosts: ...``.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

NETWORKS = ("10.77.{number}.{host}", "10.78.{number}.{host}")
IPV6_NETWORK = "fd78:{number:x}::{host:x}"
FOLDER = Path(__file__).resolve().parents[2] / "build" / "cluster"


def why_not() -> str:
    """Return why hosts cannot be created here, or "" if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces require Linux"
    if os.geteuid() != 0:
        return "network namespaces require root"
    if shutil.which("ip") is None:
        return "the command ip is missing (Debian: apt-get install iproute2)"
    made = subprocess.run(["ip", "netns", "add", "stfd-try"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", "stfd-try"], capture_output=True)
    return "" if made.returncode == 0 else f"ip netns: {made.stderr.strip()}"


class Hosts:
    """A host for the Spark master, and ``workers`` hosts with a Spark worker each.

    Args:
        folder: Directory for logs and, by host, Spark's work and local directories and a temporary directory.
        workers: Number of Spark workers.
        cores: Cores per Spark worker.
        memory: Memory per Spark worker, as Spark writes it.
        number: Identifies the cluster if there are several on the machine, 0 to 255.
        conf: Spark settings of the workers.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 3,
        cores: int = 1,
        memory: str = "2g",
        number: int = 0,
        conf: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.cores, self.memory, self.number = folder, cores, memory, number
        self.names = [f"stfd{number}-h{host}" for host in range(workers + 1)]
        self.conf = dict(conf or {})
        self._processes: list[subprocess.Popen[bytes]] = []
        self.master = f"spark://{self.address(0)}:7077"

    def __enter__(self) -> "Hosts":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def address(self, host: int, network: int = 0) -> str:
        return NETWORKS[network].format(number=self.number, host=10 + host)

    def ipv6_address(self, host: int) -> str:
        """Return a host's IPv6 address in the second network."""
        return IPV6_NETWORK.format(number=self.number, host=10 + host)

    @property
    def _switch(self) -> str:
        return f"stfd{self.number}-switch"

    # --- network

    def up(self) -> None:
        """Create the hosts and start Spark on them."""
        self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        _ip("netns", "add", self._switch)
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        self._connect("bridge", "eth0", "h", 0)
        self.start_master()
        for host in range(1, len(self.names)):
            self.start_worker(host)
        for host in range(1, len(self.names)):
            self._wait_in_log(f"worker{host}.log", "Successfully registered with master")

    def add_network(self) -> None:
        """Connect all hosts by a second network, at their interfaces ``eth1``, of which Spark knows nothing.

        It has addresses of both kinds.
        """
        self._connect("bridge1", "eth1", "n", 1)
        for host, name in enumerate(self.names):
            # Without the detection of duplicate addresses, which takes seconds.
            _ip("-n", name, "addr", "add", f"{self.ipv6_address(host)}/64", "dev", "eth1", "nodad")

    def _connect(self, bridge: str, interface: str, port: str, network: int) -> None:
        switch = self._switch
        _ip("-n", switch, "link", "add", bridge, "type", "bridge")
        _ip("-n", switch, "link", "set", bridge, "up")
        for host, name in enumerate(self.names):
            peer = f"{port}{host}"
            _ip("link", "add", interface, "netns", name, "type", "veth", "peer", "name", peer, "netns", switch)
            _ip("-n", switch, "link", "set", peer, "master", bridge)
            _ip("-n", switch, "link", "set", peer, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host, network)}/24", "dev", interface)
            _ip("-n", name, "link", "set", interface, "up")

    def down(self) -> None:
        """Kill all processes on the hosts and remove the network. Does nothing if they do not exist."""
        known = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        pattern = re.compile(rf"^(stfd{self.number}-(?:h\d+|switch))\b", re.MULTILINE)
        for name in pattern.findall(known):
            _kill(_pids(name))
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def set_link(self, host: int, *, up: bool) -> None:
        """Connect or disconnect a host."""
        _ip("-n", self._switch, "link", "set", f"h{host}", "up" if up else "down")

    @contextlib.contextmanager
    def poor_link(self, host: int, delay: float, loss: float) -> Iterator[None]:
        """Delay a host's packets by ``delay`` seconds, and drop a fraction ``loss`` of them.

        Uses a TAP device and a relay in Python, to support kernels without netem.
        """
        relay = subprocess.Popen(
            [sys.executable, __file__, "relay", self.names[host], self._switch, str(delay), str(loss)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert relay.stdout is not None
        relay.stdout.readline()
        address = f"{self.address(host)}/24"
        _ip("-n", self._switch, "link", "set", "poor", "master", "bridge")
        _ip("-n", self._switch, "link", "set", "poor", "up")
        _ip("-n", self.names[host], "addr", "delete", address, "dev", "eth0")
        _ip("-n", self.names[host], "addr", "add", address, "dev", "poor")
        _ip("-n", self.names[host], "link", "set", "poor", "up")
        self._announce(host, "poor")
        try:
            yield
        finally:
            _ip("-n", self.names[host], "addr", "delete", address, "dev", "poor")
            _ip("-n", self.names[host], "addr", "add", address, "dev", "eth0")
            relay.kill()
            relay.wait()
            relay.stdout.close()
            self._announce(host, "eth0")

    def _announce(self, host: int, device: str) -> None:
        """Make the other hosts forget the old hardware address."""
        for name in self.names:
            _ip("-n", name, "neigh", "flush", "all")
        _ip("-n", self.names[host], "link", "set", device, "up")

    # --- processes

    def start_master(self) -> None:
        host, port = self.address(0), self.master.rpartition(":")[2]
        self._start(0, "master.log", "org.apache.spark.deploy.master.Master", "--host", host, "--port", port)
        self._wait_in_log("master.log", "I have been elected leader")

    def start_worker(self, host: int) -> None:
        """Start or restart a host's Spark worker."""
        properties = self.folder / "worker.conf"
        properties.write_text("".join(f"{key} {value}\n" for key, value in self.conf.items()))
        options = ["--host", self.address(host), "--cores", str(self.cores), "--memory", self.memory]
        options += ["--properties-file", str(properties), self.master]
        self._start(host, f"worker{host}.log", "org.apache.spark.deploy.worker.Worker", *options)

    def command(self, host: int, *words: str) -> list[str]:
        """Return the command line that runs ``words`` on a host."""
        return ["ip", "netns", "exec", self.names[host], *words]

    def environment(self, host: int) -> dict[str, str]:
        """Return the environment for a program on a host."""
        local, temporary = (self.folder / f"h{host}" / name for name in ("local", "tmp"))
        for folder in (local, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        return {
            **os.environ,
            "SPARK_LOCAL_IP": self.address(host),
            "SPARK_LOCAL_DIRS": str(local),
            "TMPDIR": str(temporary),
            "SPARK_MASTER": self.master,
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
        }

    def pids(self, host: int, text: str = "") -> dict[int, str]:
        """Return a host's processes whose command line contains ``text``, without zombies."""
        return {pid: line for pid, line in _pids(self.names[host]).items() if text in line}

    def python_workers(self, host: int) -> list[int]:
        """Return a host's Spark Python workers, which the Python daemon has forked."""
        return self.forked(host, "pyspark.daemon")

    def forked(self, host: int, text: str) -> list[int]:
        """Return a host's processes with ``text`` in the command line whose parent has it too."""
        found = self.pids(host, text)
        return [pid for pid in found if _parent(pid) in found]

    def executors(self, host: int) -> list[int]:
        """Return the executor JVMs on a host."""
        return _java(self.pids(host, "CoarseGrainedExecutorBackend"))

    def host_of(self, pid: int) -> int:
        """Return the host that a process runs on."""
        return next(host for host, name in enumerate(self.names) if pid in _pids(name))

    def kill_processes(self, host: int, text: str) -> None:
        """Kill a host's processes whose command line contains ``text``."""
        _kill(self.pids(host, text))

    def kill_host(self, host: int) -> None:
        """Kill all processes of a host at once."""
        _kill(_pids(self.names[host]))

    def _start(self, host: int, log: str, *words: str) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        environment = self.environment(host) | {
            "SPARK_HOME": str(home),
            "SPARK_WORKER_DIR": str(self.folder / f"h{host}" / "work"),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_NO_DAEMONIZE": "1",
        }
        with open(self.folder / log, "w") as file:
            process = subprocess.Popen(
                self.command(host, str(home / "bin" / "spark-class"), words[0], "--webui-port", "0", *words[1:]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._processes.append(process)

    def _wait_in_log(self, log: str, text: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while text not in (found := (self.folder / log).read_text()):
            if time.monotonic() > end:
                raise TimeoutError(f"{log} does not contain {text!r} after {seconds:g} s:\n{found}")
            time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _pids(name: str) -> dict[int, str]:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    found = {}
    for pid in map(int, listed):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if line:  # a zombie has none
                found[pid] = line
    return found


def _java(processes: Mapping[int, str]) -> list[int]:
    return [pid for pid, line in processes.items() if "java" in line]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _kill(pids: Mapping[int, str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def relay(inner: str, outer: str, delay: float, loss: float) -> None:
    """Forward packets between the TAP devices ``poor`` of two namespaces, delaying all and dropping some."""
    import heapq
    import random
    import select

    ends = [_tap(inner), _tap(outer)]
    print("ready", flush=True)
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], timeout)[0]:
            packet = os.read(end, 65536)
            if random.random() >= loss:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, ends[1 - ends.index(end)], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # the other end is disconnected
                os.write(end, packet)


def _tap(namespace: str) -> int:
    """Move this process to a namespace, and create a TAP device there."""
    import ctypes
    import fcntl
    import struct

    with open(f"/var/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    tun_set, is_tap_without_header = 0x400454CA, 0x1002
    fcntl.ioctl(descriptor, tun_set, struct.pack("16sH", b"poor", is_tap_without_header))
    return descriptor


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="create the hosts and start Spark on them")
    start.add_argument("--workers", type=int, default=3)
    start.add_argument("--cores", type=int, default=2, help="cores per worker (default: 2)")
    start.add_argument("--memory", default="2g", help="memory per worker (default: 2g)")
    commands.add_parser("status", help="show what is running on each host")
    commands.add_parser("down", help="stop everything and remove the hosts")
    run = commands.add_parser("exec", help="run a command on a host, with SPARK_MASTER set")
    run.add_argument("--host", type=int, default=0)
    run.add_argument("words", nargs=argparse.REMAINDER, help="the command to run")
    link = commands.add_parser("link", help="disconnect or connect a host")
    link.add_argument("host", type=int)
    link.add_argument("state", choices=("up", "down"))
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason:
        print(f"Cannot create hosts: {reason}.", file=sys.stderr)
        return 1
    note = FOLDER / "cluster.json"
    if options.command == "up":
        hosts = Hosts(FOLDER, options.workers, options.cores, options.memory, number=1)
        hosts.up()
        note.write_text(json.dumps({"workers": options.workers, "cores": options.cores, "memory": options.memory}))
        print(
            f"The master and {options.workers} workers with {options.cores} slots each are running: {hosts.master}\n"
            f"Logs: {FOLDER}\nTo run a program:  scripts/cluster exec .venv/bin/python examples/digits.py "
            f"--master {hosts.master}\nTo stop the cluster:  scripts/cluster down"
        )
        return 0
    if not note.exists():
        print("No cluster is running. Start one with: scripts/cluster up", file=sys.stderr)
        return 0 if options.command == "down" else 1
    hosts = Hosts(FOLDER, **json.loads(note.read_text()), number=1)
    if options.command == "down":
        hosts.down()
        note.unlink()
    elif options.command == "link":
        hosts.set_link(options.host, up=options.state == "up")
    elif options.command == "exec":
        words = options.words[1:] if options.words[:1] == ["--"] else options.words
        return subprocess.run(hosts.command(options.host, *words), env=hosts.environment(options.host)).returncode
    else:
        for host, name in enumerate(hosts.names):
            kinds = {"master": "deploy.master", "worker": "deploy.worker", "executors": "CoarseGrained"}
            found = {
                kind: sum("java" in line for line in hosts.pids(host, text).values()) for kind, text in kinds.items()
            }
            found["python workers"] = len(hosts.python_workers(host))
            words = ", ".join(f"{count} {kind}" for kind, count in found.items() if count) or "no processes"
            print(f"host {host}  {hosts.address(host)}  {name}: {words}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        relay(sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
    sys.exit(main(sys.argv[1:]))
