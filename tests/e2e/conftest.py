"""Real servers for end-to-end tests: Moonpool from the build under test, and redis-server."""
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest
import redis

BUILD = pathlib.Path(os.environ.get("MOONPOOL_BUILD", "build/release")).resolve()
SERVER = BUILD / "server" / "moonpool-server"
DEADLINE_S = 30  # for anything that is waited for; sanitizer builds are slow


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, what, seconds=DEADLINE_S):
    """Polls until `condition()` is true; fails the test when it never is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"timed out waiting for {what}")


class Server:
    """A server process on a port of its own, listening on loopback only."""

    def __init__(self, command, port, log):
        self.port = port
        self.log_path = log
        self.log = open(log, "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        wait_for(self._answers, f"{command[0]} to answer")

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"server died: {self.log_path.read_text()}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
        except OSError:
            return False

    def client(self, **options):
        options.setdefault("socket_timeout", DEADLINE_S)
        return redis.Redis(port=self.port, **options)

    def raw(self, family=socket.AF_INET):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def text(self):
        return self.log_path.read_text(errors="replace")

    def stop(self):
        """Asks it to stop and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not stop") from None
        finally:
            self.log.close()
        return status

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def start_server(tmp_path):
    """start_server("--key", "value", ...) starts a Moonpool server; all are stopped at the end."""
    servers = []

    def start(*flags, port=None):
        port = port or free_port()
        log = tmp_path / f"moonpool-{port}-{len(servers)}.log"
        command = [str(SERVER), "--port", str(port), "--maxmemory", "256mb", *flags]
        server = Server(command, port, log)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            status = server.stop()
            assert status == 0, f"exit status {status}:\n{server.text()}"


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def redis_server(tmp_path):
    """The reference: a redis-server 7 with the same settings."""
    port = free_port()
    reference = Server(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                        "--appendonly", "no", "--dir", str(tmp_path)], port,
                       tmp_path / f"redis-{port}.log")
    yield reference
    reference.stop()
