"""Real servers for end-to-end tests: Moonpool from the build under test, and redis-server.

MOONPOOL_BUILD names the build folder (default: build/release).
"""
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

import pytest
import redis

import resp

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("MOONPOOL_BUILD", "build/release")).resolve()
SERVER = BUILD / "server" / "moonpool-server"
DEADLINE_S = resp.DEADLINE_S


def pytest_report_header():
    return f"build under test: {BUILD}"


def pytest_collection_modifyitems(items):
    """The file that takes longest first: the others run beside it."""
    items.sort(key=lambda item: item.path.name != "test_rdma_vm.py")


def cached(option):
    """What the build was configured with."""
    for line in (BUILD / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(option + ":"):
            return line.split("=", 1)[1]
    return ""


def sanitized():
    """The build has sanitizers: five to ten times slower, and memory costs several times more."""
    return cached("MOONPOOL_SANITIZE") != ""


needs_tools = pytest.mark.skipif(cached("MOONPOOL_TOOLS") == "OFF",
                                 reason="this build has no tools (MOONPOOL_TOOLS)")


def free_port():
    """A port nobody listens on, below those that the kernel gives to outgoing connections; those
    below 26000 are of the GoogleTest executables, which run beside these tests."""
    while True:
        port = random.randrange(26000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("", port))
                return port
            except OSError:
                pass


def wait_for(condition, what, seconds=DEADLINE_S):
    """Polls until `condition()` is true and returns its value; fails the test when it never is."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(0.01)


class Server:
    """A server process on a port of its own; port 0: it listens on no TCP port."""

    def __init__(self, command, port, log, cwd=None, prefix=()):
        self.port = port
        self.log_path = log
        self.log = open(log, "wb")
        self.process = subprocess.Popen([*prefix, *map(str, command)], stdout=self.log,
                                        stderr=subprocess.STDOUT, cwd=cwd)
        # The port may belong to somebody else by now; only the log tells.
        wait_for(self._ready, f"{command[0]} to start")

    def _ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the server died: {self.text()}")
        return "eady to accept connections" in self.text()

    def client(self, **options):
        """A redis-py client."""
        options.setdefault("socket_timeout", DEADLINE_S)
        return redis.Redis(port=self.port, **options)

    def connect(self, **options):
        """A raw RESP connection."""
        return resp.Connection(self.port, **options)

    def stats(self):
        """KV.STATS as a dictionary."""
        with self.connect() as connection:
            flat = connection.value("KV.STATS")
        return {name.decode(): number for name, number in zip(flat[::2], flat[1::2])}

    def info(self, *sections):
        """INFO as a dictionary of texts."""
        with self.connect() as connection:
            text = connection.value("INFO", *sections).decode()
        rows = (line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        return {name: value for name, value in rows}

    def text(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, by=signal.SIGTERM):
        """Asks it to stop and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.wait()

    def wait(self):
        """Waits until it has ended by itself; returns the exit status."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not stop: {self.text()}") from None
        finally:
            self.log.close()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Servers:
    """Starts Moonpool servers in a folder of their own; stop_all() wants clean exits."""

    def __init__(self, folder):
        self.folder = folder
        self.all = []

    def start(self, *flags, port=None, config=None, memory="256mb", prefix=()):
        """`flags` as on the command line; `config`: the path of a configuration file."""
        for attempt in range(10):
            number = port if port is not None else free_port()
            log = self.folder / f"moonpool-{number}-{len(self.all)}-{attempt}.log"
            command = [SERVER, *([config] if config else []), "--port", number,
                       *(["--maxmemory", memory] if memory else []), *flags]
            try:
                server = Server(command, number, log, cwd=self.folder, prefix=prefix)
            except AssertionError as failure:
                if port is None and "Address already in use" in str(failure) and attempt < 9:
                    continue
                raise
            self.all.append(server)
            return server

    def fails(self, *arguments):
        """Runs the server with arguments it must refuse; returns what it says."""
        ended = subprocess.run([SERVER, *map(str, arguments)], capture_output=True, text=True,
                               timeout=DEADLINE_S, cwd=self.folder)
        assert ended.returncode == 1, ended
        return ended.stdout + ended.stderr

    def stop_all(self):
        for server in self.all:
            if server.process.poll() is None:
                status = server.stop()
                assert status == 0, f"exit status {status}:\n{server.text()}"
            for word in ("Sanitizer", "runtime error"):
                assert word not in server.text(), server.text()


def start_reference(folder, *flags):
    """A redis-server 7."""
    for attempt in range(10):
        port = free_port()
        try:
            return Server(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "",
                           "--appendonly", "no", "--dir", folder, *flags], port,
                          folder / f"redis-{port}-{attempt}.log")
        except AssertionError as failure:
            if "Address already in use" not in str(failure) or attempt == 9:
                raise


@pytest.fixture
def servers(tmp_path):
    started = Servers(tmp_path)
    yield started
    started.stop_all()


@pytest.fixture
def start_server(servers):
    """start_server("--key", "value", ...) starts a Moonpool server; all are stopped at the end."""
    return servers.start


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def redis_server(tmp_path):
    """The reference: a redis-server 7 with the same settings."""
    reference = start_reference(tmp_path)
    yield reference
    reference.stop()


class Pair:
    """A Moonpool server and a redis-server, to compare."""

    def __init__(self, moonpool, reference):
        self.moonpool = moonpool
        self.reference = reference

    def connect(self):
        return self.moonpool.connect(), self.reference.connect()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One pair for a whole file: starting servers takes longer than most comparisons."""
    folder = tmp_path_factory.mktemp("pair")
    moonpool = Servers(folder)
    ours = moonpool.start("--io-threads", "2", "--maxmemory-policy", "noeviction", memory="1gb")
    reference = start_reference(folder)
    yield Pair(ours, reference)
    reference.stop()
    moonpool.stop_all()
