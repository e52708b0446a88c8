"""A real standalone Spark cluster on loopback addresses, and programs that run against it as drivers."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyspark

from helpers import QUICK_JVM, wait_until

SPARK_HOME = Path(pyspark.__file__).parent
_PROGRAMS = Path(__file__).parent / "programs"
# PySpark 3.5 from PyPI contains the client of Spark Connect, but not the server.
HAS_CONNECT = importlib.util.find_spec("grpc_status") is not None and any(SPARK_HOME.glob("jars/spark-connect_*.jar"))
NO_CONNECT = "pyspark[connect] is not installed, or contains no server"


def run_program(program, *args, conf=None, timeout=200):
    """Run a program of tests/programs with its own session; return its result and everything that it printed."""
    command = [sys.executable, str(_PROGRAMS / program), json.dumps(conf or {}), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, f"exit status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return json.loads(lines[0][7:]), done.stdout


class StandaloneCluster:
    """A master and, by default, two workers with four cores each, on 127.0.0.1 and 127.0.0.2.

    Args:
        folder: The folder for logs and work directories.
        worker_conf: Settings for the workers (mainly GPU resources).
        hosts: The workers' addresses.
    """

    def __init__(self, folder, worker_conf=None, hosts=("127.0.0.1", "127.0.0.2")):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self._processes = []
        self._drivers = []
        self._logs = []
        env = {**os.environ, "SPARK_HOME": str(SPARK_HOME), "SPARK_WORKER_DIR": str(self.folder / "work")}
        env["SPARK_NO_DAEMONIZE"] = "1"
        env["SPARK_DAEMON_MEMORY"] = "256m"
        self._env = env
        self._start("master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0")
        self.url = self._find_in_log("master", r"Starting Spark master at (spark://\S+)")
        self._properties = self.folder / "worker.conf"
        self._properties.write_text("".join(f"{key} {value}\n" for key, value in (worker_conf or {}).items()))
        for host in hosts:
            self.start_worker(host)
        for host in hosts:
            self._find_in_log(f"worker-{host}", r"Successfully registered with master")

    def start_worker(self, host):
        """Start a worker, without waiting for it."""
        self._start(
            f"worker-{host}", "org.apache.spark.deploy.worker.Worker", "--host", host, "--cores", "4",
            "--memory", "4g", "--properties-file", str(self._properties), self.url,
        )  # fmt: skip

    def _start(self, name, cls, *args):
        log = open(self.folder / f"{name}.log", "w")  # noqa: SIM115 (the process writes to it)
        self._logs.append(log)
        command = [str(SPARK_HOME / "bin" / "spark-class"), cls, "--webui-port", "0", *args]
        env = {**self._env, "SPARK_LOCAL_IP": args[1]}
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env))

    def _find_in_log(self, name, pattern):
        path = self.folder / f"{name}.log"
        assert wait_until(lambda: re.search(pattern, path.read_text()), 60), path.read_text()
        found = re.search(pattern, path.read_text())
        return found[1] if found.groups() else found[0]

    def drive(self, program, *args, conf=None, timeout=180, env=None, check=True):
        """Run a program of tests/programs as a driver; return the JSON that it printed after "RESULT"."""
        done = self.start_driver(program, *args, conf=conf, env=env)
        out, _ = done.communicate(timeout=timeout)
        if check:
            assert done.returncode == 0, out
        results = [line for line in out.splitlines() if line.startswith("RESULT ")]
        return (json.loads(results[-1][7:]) if results else None), out

    def start_driver(self, program, *args, conf=None, env=None, stdin=None):
        settings = {"spark.master": self.url, "spark.driver.host": "127.0.0.1"}
        settings |= {"spark.executor.extraJavaOptions": QUICK_JVM, **(conf or {})}
        command = [sys.executable, str(_PROGRAMS / program), json.dumps(settings), *args]
        driver = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._drivers.append(driver)
        return driver

    def close(self):
        for driver in self._drivers:  # those that a failed test has left running
            if driver.poll() is None:
                driver.kill()
                driver.communicate()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in self._logs:
            log.close()
        time.sleep(0.1)
