"""redis-cli and redis-benchmark, as people use them."""
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pytest

from conftest import DEADLINE_S, Servers, sanitized
from resp import encode
from test_differential import pattern

# Escape sequences of a terminal.
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("cli"))
    yield servers.start()
    servers.stop_all()


@pytest.fixture
def keys(shared):
    """A server with a thousand small keys and a few large ones."""
    with shared.connect() as connection:
        connection.value("FLUSHALL")
        connection.pipeline([("SET", f"user:{i}", f"value {i}") for i in range(1000)])
        connection.pipeline([("SET", f"block:{i}", pattern(100_000 + i)) for i in range(10)])
    return shared


def cli(server, *arguments, feed=None, seconds=DEADLINE_S):
    """Runs redis-cli; returns what it printed.  It must succeed and complain about nothing."""
    ended = subprocess.run(["redis-cli", "-p", str(server.port), *arguments], input=feed,
                           capture_output=True, timeout=seconds)
    assert ended.returncode == 0, ended
    assert ended.stderr == b"", ended.stderr
    return ended.stdout.decode(errors="replace")


class Terminal:
    """redis-cli on a pseudo-terminal."""

    def __init__(self, *arguments):
        pid, self.fd = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
            os.environ.update(TERM="xterm", HOME="/nonexistent")
            os.execvp("redis-cli", ["redis-cli", *map(str, arguments)])
        self.pid = pid
        self.screen = ""

    def read_until(self, text, then=""):
        end = time.monotonic() + DEADLINE_S
        while text not in self.screen or then not in self.screen.partition(text)[2]:
            assert time.monotonic() < end, f"no {text!r} {then!r} in {self.screen!r}"
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                assert data, f"it ended without {text!r}: {self.screen!r}"
                self.screen += ESCAPE.sub("", data.decode(errors="replace"))
        return self.screen

    def type(self, text):
        self.screen = ""
        os.write(self.fd, text.encode())

    def enter(self, line, answer):
        """Also waits for the next prompt: redis-cli forgets what was typed before it."""
        self.type(f"\x15{line}\r")
        return self.read_until(answer, then="127.0.0.1:")

    def close(self):
        os.write(self.fd, b"\x15\x04")  # clear the line, end of input
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return status


def test_hints_while_typing(shared):
    """redis-cli asks COMMAND DOCS for its hints and help."""
    terminal = Terminal("-p", shared.port)
    prompt = f"127.0.0.1:{shared.port}> "
    terminal.read_until(prompt)
    for typed, hint in [("set ", "key value [NX|XX] [GET] [EX seconds|PX milliseconds|"),
                        ("getex ", "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|"),
                        ("mset ", "key value [key value ...]"),
                        ("client kill ", "ip:port|"),
                        ("kv.locate ", "numkeys key [key ...] [LEASE milliseconds] [HOLD]"),
                        ("kv.alloc ", "numkeys key length [key length ...] [NX|XX]")]:
        terminal.type("\x15" + typed)
        terminal.read_until(hint)
    terminal.enter("set greeting hello", "OK")
    terminal.enter("get greeting", '"hello"')
    terminal.enter("help set", "summary: Sets the string value of a key")
    assert "since: 0.1.0" in terminal.enter("help kv.locate", "group: kv")
    terminal.enter("help @string", "SUBSTR")
    terminal.enter("command docs bogus", "(empty array)")
    terminal.enter("hello 3", '"moonpool"')
    terminal.enter("config get time*", '"timeout" => "0"')
    terminal.type("quit\r")
    assert os.waitpid(terminal.pid, 0)[1] == 0
    os.close(terminal.fd)


def test_plain_commands(keys):
    assert cli(keys, "ping") == "PONG\n"
    assert cli(keys, "get", "user:7") == "value 7\n"
    assert cli(keys, "dbsize") == "1010\n"
    assert cli(keys, "-3", "hello", "3").startswith("server moonpool\n")
    assert cli(keys, "-3", "--json", "mget", "user:1", "nothing") == '["value 1",null]\n'
    assert cli(keys, "-n", "0", "ping") == "PONG\n"
    assert cli(keys, "-r", "5", "-i", "0", "ping") == "PONG\n" * 5
    assert cli(keys, "-x", "set", "stdin", feed=b"a\x00b") == "OK\n"
    assert cli(keys, "strlen", "stdin") == "3\n"
    assert cli(keys, feed=b"ping\nget user:3\nset a b\nget a\n") == "PONG\nvalue 3\nOK\nb\n"
    assert "redis_version:7" in cli(keys, "info")
    assert cli(keys, "--csv", "mget", "user:1", "user:2") == '"value 1","value 2"\n'
    assert "WRONGTYPE" not in cli(keys, "--no-raw", "scan", "0", "count", "5")
    assert cli(keys, "-u", f"redis://127.0.0.1:{keys.port}/0", "ping") == "PONG\n"
    failed = subprocess.run(["redis-cli", "-p", str(keys.port), "-e", "bogus"],
                            capture_output=True, text=True, timeout=DEADLINE_S)
    assert failed.returncode == 1
    assert "ERR unknown command 'bogus'" in failed.stderr


def test_scan(keys):
    names = cli(keys, "--scan").split()
    assert len(names) == 1010 and len(set(names)) == 1010
    assert sorted(cli(keys, "--scan", "--pattern", "user:99*").split()) == sorted(
        ["user:99"] + [f"user:99{i}" for i in range(10)])
    assert sorted(cli(keys, "--scan", "--pattern", "block:*").split()) == [
        f"block:{i}" for i in range(10)]


def test_bigkeys_and_memkeys(keys):
    text = cli(keys, "--bigkeys")
    assert "Sampled 1010 keys in the keyspace!" in text
    assert """Biggest string found '"block:9"' has 100009 bytes""" in text
    text = cli(keys, "--memkeys")
    assert "Sampled 1010 keys in the keyspace!" in text
    assert re.search(r"""Biggest string found '"block:\d"' has 1\d{5} bytes""", text), text
    assert "Sampled 1010 keys" in cli(keys, "--memkeys-samples", "0")


def test_hotkeys(keys):
    """Needs a policy that counts uses: the default one does."""
    assert "Sampled 1010 keys in the keyspace!" in cli(keys, "--hotkeys")


def test_stat(keys):
    """One line a second, for ever: the first is enough."""
    with subprocess.Popen(["redis-cli", "-p", str(keys.port), "-r", "2", "-i", "0.05", "--stat"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        process.terminate()
    assert lines[0].startswith("------- data ------")
    assert lines[1].split()[:3] == ["keys", "mem", "clients"]
    for line in lines[2:]:
        numbers = line.split()
        assert numbers[0] == "1010"
        assert re.fullmatch(r"\d+(\.\d+)?[BKMG]", numbers[1]), line
        assert int(numbers[2]) >= 1


def test_latency(keys):
    """Without a terminal it measures for a while and prints one line."""
    with subprocess.Popen(["redis-cli", "-p", str(keys.port), "-i", "1", "--latency"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = process.stdout.readline()
        process.wait(DEADLINE_S)
    numbers = [float(number) for number in line.split()]
    assert len(numbers) == 4 and numbers[3] > 0, line


def test_pipe_mode(shared, tmp_path):
    """Mass insertion: RESP, and inline commands."""
    with shared.connect() as connection:
        connection.value("FLUSHALL")
        feed = b"".join(encode("SET", f"pipe:{i}", f"value {i}") for i in range(20_000))
        feed += b"".join(encode("SET", f"pipe:large:{i}", pattern(70_000 + i)) for i in range(20))
        (tmp_path / "feed").write_bytes(feed)
        text = cli(shared, "--pipe", feed=feed)
        assert "errors: 0, replies: 20020" in text
        assert connection.value("DBSIZE") == 20_020
        assert connection.value("GET", "pipe:19999") == b"value 19999"
        assert connection.value("GET", "pipe:large:19") == pattern(70_019)
        text = cli(shared, "--pipe", feed=b"".join(b"INCR counter\r\n" for _ in range(1000)))
        assert "errors: 0, replies: 1000" in text
        ended = subprocess.run(["redis-cli", "-p", str(shared.port), "--pipe"],
                               input=encode("BOGUS"), capture_output=True, timeout=DEADLINE_S)
        assert b"errors: 1, replies: 1" in ended.stdout


@pytest.mark.parametrize("arguments", [
    ["-t", "ping,set,get,incr,mset", "-q"],
    ["-t", "ping,set,get,incr,mset", "-q", "-P", "16"],
    ["-t", "set,get", "-q", "-d", "100000", "-n", "500", "-P", "3"],
    ["-t", "set,get", "-q", "-r", "100000", "-P", "128", "-c", "10"],
    ["-t", "ping,get", "-q", "-3"],
    ["-t", "get,set", "-q", "--threads", "2", "-P", "4"],
    ["-q", "KV.LOCATE", "1", "key:__rand_int__"],
    ["-q", "-r", "1000", "KV.LOCATE", "1", "key:__rand_int__"],
    ["-q", "-r", "1000", "-P", "16", "KV.LOCATE", "2", "key:__rand_int__", "key:__rand_int__"],
    ["-q", "-r", "1000", "GETEX", "key:__rand_int__", "EX", "100"],
], ids=" ".join)
def test_benchmark(shared, arguments):
    count = "4000" if sanitized() else "20000"
    command = ["redis-benchmark", "-p", str(shared.port),
               *([] if "-n" in arguments else ["-n", count]), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "requests per second" in output
    for word in ("ERR", "WARNING", "rror"):
        assert word not in output, output


def test_benchmark_leaves_the_right_values(shared):
    with shared.connect() as connection:
        connection.value("FLUSHALL")
        subprocess.run(["redis-benchmark", "-p", str(shared.port), "-t", "incr,mset", "-q", "-n",
                        "3000", "-P", "10"], check=True, capture_output=True,
                       timeout=2 * DEADLINE_S)
        assert connection.value("GET", "counter:__rand_int__") == b"3000"
