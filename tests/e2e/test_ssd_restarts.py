"""What a restart serves: everything after a clean stop, nothing that is not current after kill -9."""
import random
import signal
import threading
import time

import pytest
import redis

from conftest import sanitized, wait_for
from ssd import FLAGS, KIB, MEMORY, MIB, push_down, put_down, stamped, tier_of, tiers, version_of


@pytest.fixture
def start(start_server, tmp_path):
    """Starts a server on the test's one SSD directory."""
    def start_tiered(*flags, **options):
        options.setdefault("memory", MEMORY)
        return start_server("--ssd-directory", tmp_path / "ssd", *FLAGS, *flags, **options)
    return start_tiered


def shut_down(server, *words):
    with server.connect() as connection:
        connection.send(b" ".join([b"SHUTDOWN", *words]) + b"\r\n")
        connection.closed()
    assert server.wait() == 0


@pytest.mark.parametrize("stop", [
    lambda server: server.stop(), lambda server: server.stop(signal.SIGINT),
    lambda server: shut_down(server), lambda server: shut_down(server, b"SAVE")],
    ids=["SIGTERM", "SIGINT", "SHUTDOWN", "SHUTDOWN SAVE"])
def test_a_clean_stop_keeps_everything(start, stop):
    server = start()
    client = server.client()
    lengths = [20, 5000, 64 * KIB, 300 * KIB + 1, 2 * MIB]
    values = {f"key:{i}": stamped(f"key:{i}", i, lengths[i % 5]) for i in range(60)}
    for key, value in values.items():
        client.set(key, value)
        if int(key[4:]) % 3 == 0:
            client.pexpire(key, 1_000_000)
    for key in ("key:1", "key:2", "key:50"):
        client.delete(key)
        del values[key]
    for start_number in range(2):
        stop(server)
        server = start(port=server.port)
        client = server.client()
        assert client.dbsize() == len(values)
        for key, value in values.items():
            assert client.get(key) == value, (key, start_number)
            assert (client.pttl(key) > 800_000) == (int(key[4:]) % 3 == 0)
        assert tiers(server)["tier_ssd_lost"] == 0


def test_shutdown_nosave_forgets_but_does_not_lie(start):
    server = start()
    client = server.client()
    put_down(client, {f"down:{i}": stamped(f"down:{i}", 1, 100 * KIB) for i in range(10)})
    client.set("down:0", stamped("down:0", 2, 100 * KIB))
    client.delete("down:1")
    client.set("small", "x")
    shut_down(server, b"NOSAVE")
    client = start(port=server.port).client()
    assert client.get("small") is None and client.get("down:1") is None
    for i in range(10):
        data = client.get(f"down:{i}")
        assert data is None or version_of(f"down:{i}", data) == (2 if i == 0 else 1)


def test_the_hottest_values_come_up_by_themselves(start):
    server = start()
    client = server.client()
    put_down(client, {f"cold:{i}": stamped(f"cold:{i}", 1, 100 * KIB) for i in range(20)})
    client.set("hot", stamped("hot", 1, 100 * KIB))
    for _ in range(10):
        client.get("hot")
    server.stop()
    server = start(port=server.port)
    client = server.client()
    wait_for(lambda: tier_of(client, "hot") == "dram", "what was hot to come up")
    assert tier_of(client, "cold:0") == "ssd"


@pytest.mark.parametrize("change", [
    ("FLUSHALL",), ("FLUSHALL", "ASYNC"), ("KV.DROP", "NAMESPACE", "key"),
    ("KV.DROP", "MATCH", "*:*"), ("DEL", *(f"key:{i}" for i in range(30)))],
    ids=lambda change: " ".join(change[:2]))
def test_what_was_removed_stays_removed(start, change):
    server = start()
    put_down(server.client(), {f"key:{i}": stamped(f"key:{i}", 1, 100 * KIB) for i in range(30)})
    with server.connect() as connection:
        connection.value(*change)
        server.kill()
    client = start(port=server.port).client()
    assert client.exists(*(f"key:{i}" for i in range(30))) == 0
    assert client.mget(*(f"key:{i}" for i in range(30))) == [None] * 30


@pytest.mark.parametrize("policy", ["evict", "through"])
def test_excluded_keys_stay_in_memory_only(start, policy):
    flags = ("--ssd-write-policy", policy, "--ssd-exclude", "tmp:* *:scratch")
    server = start(*flags)
    client = server.client()
    names = [f"{kind}{i}" for i in range(20) for kind in ("tmp:", "kept:")] + ["a:scratch"]
    values = {key: stamped(key, 1, 100 * KIB) for key in names}
    for key, value in values.items():
        client.set(key, value)
    client.set("tmp:small", "x")
    client.set("kept:small", "x")
    kept = [key for key in names if key.startswith("kept:")]
    push_down(client, *kept)
    out = [key for key in names if key not in kept]
    def gone():
        client.set("kept:filler", stamped("kept:filler", 1, 500 * KIB))
        client.set("kept:filler2", stamped("kept:filler2", 1, 500 * KIB))
        for i in range(30):
            client.set(f"kept:filler{i}", stamped(f"kept:filler{i}", 1, 500 * KIB))
        return client.exists(*out) == 0
    wait_for(gone, "excluded keys to be dropped")
    assert tiers(server)["tier_ssd_drops_excluded"] == len(out)
    client.set("tmp:new", stamped("tmp:new", 1, 100 * KIB))
    server.stop()
    client = start(*flags, port=server.port).client()
    assert client.exists(*out, "tmp:new", "tmp:small") == 0
    assert client.get("kept:small") == b"x"
    for key in kept:
        assert client.get(key) == values[key]
    # From now on they may.
    client.config_set("ssd-exclude", "")
    put_down(client, {"tmp:0": values["tmp:0"]})


@pytest.mark.parametrize("flags", [
    ("--ssd-sync", "yes"), ("--ssd-wal", "yes"), ("--ssd-direct-io", "no"),
    ("--ssd-compression", "lz4"), ("--ssd-compression", "zstd"),
    ("--ssd-rate-limit", "200mb", "--ssd-background-threads", "4", "--ssd-readers", "1")],
    ids=lambda flags: " ".join(flags[:2]))
def test_every_option_serves_and_survives(start, tmp_path, flags):
    server = start(*flags)
    values = {f"key:{i}": stamped(f"key:{i}", 1, 100 * KIB + i) + b"-" * 200 * KIB
              for i in range(40)}
    put_down(server.client(), values)
    assert server.client().mget(*values) == list(values.values())
    push_down(server.client(), *values)
    client = server.client()
    client.delete("key:0")
    client.set("key:1", "small now")
    server.kill()
    values["key:0"], values["key:1"] = None, None
    server = start(*flags, port=server.port)
    client = server.client()
    found = 0
    for key, value in values.items():
        data = client.get(key)
        assert data is None or data == value, key
        found += data is not None
    if "--ssd-wal" in flags:
        assert found == len(values) - 2
    values = {f"key:{i}": stamped(f"key:{i}", 2, 100 * KIB + i) + b"-" * 200 * KIB
              for i in range(40)}
    put_down(client, values)
    server.stop()
    plain = any(b"-" * 1000 in path.read_bytes() for path in (tmp_path / "ssd").rglob("*.blob"))
    assert plain == ("--ssd-compression" not in flags)
    client = start(*flags, port=server.port).client()
    for key, value in values.items():
        assert client.get(key) == value


class Writer(threading.Thread):
    """Changes keys of its own until the server is gone, and knows what each may hold then."""

    def __init__(self, number, seed, port):
        super().__init__()
        self.name = f"writer{number}"
        self.keys = [f"{self.name}:{i}" for i in range(60)]
        self.random = random.Random(seed)
        self.port = port
        self.may = {key: {None} for key in self.keys}  # versions; None: none at all
        self.version = 0
        self.acknowledged = 0
        self.wrong = []

    def check(self, key, data):
        version = None if data is None else version_of(key, data)
        if version is not None and version not in self.may[key]:
            self.wrong.append(f"{key} is version {version}, not one of {self.may[key]}")
        return version

    def change(self, client, key):
        kind = self.random.choices(["set", "get", "del", "expire", "getset", "getdel", "drop"],
                                   [100, 60, 20, 10, 10, 10, 1])[0]
        if kind == "get":
            self.check(key, client.get(key))
            return
        if kind == "drop":
            for key in self.keys:
                self.may[key] |= {None}
            client.execute_command("KV.DROP", *self.random.choice(
                [("NAMESPACE", self.name), ("MATCH", f"{self.name}:*")]))
            self.may = {key: {None} for key in self.keys}
            self.acknowledged += 1
            return
        after = {None}
        if kind in ("set", "getset"):
            self.version += 1
            length = self.random.choice([50, 100 * KIB, 250 * KIB + 5, 500 * KIB])
            data = stamped(key, self.version, length)
            after = {self.version, None}
        # Until the answer has come, either may be.
        self.may[key] |= after
        if kind == "set":
            client.set(key, data)
        elif kind == "getset":
            before = self.may[key] - {self.version}
            old = client.getset(key, data)
            if old is not None and version_of(key, old) not in before:
                self.wrong.append(f"GETSET of {key} got {version_of(key, old)} of {before}")
        elif kind == "del":
            client.delete(key)
        elif kind == "expire":
            client.pexpireat(key, 1)
        else:
            client.getdel(key)
        self.may[key] = after
        self.acknowledged += 1

    def run(self):
        client = redis.Redis(port=self.port, socket_timeout=60, retry=None)
        try:
            while not self.wrong:
                self.change(client, self.random.choice(self.keys))
        except redis.ConnectionError:
            pass
        except AssertionError as failure:
            self.wrong.append(str(failure))
        client.close()


@pytest.mark.parametrize("policy", ["evict", "through"])
def test_kill_9_under_load(start, policy):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    flags = ("--ssd-write-policy", policy, "--dram-high-watermark", "0.1", "--dram-evict-ratio",
             "0.05")
    server = start(*flags)
    writers = [Writer(i, rng.random(), server.port) for i in range(3)]
    served = acknowledged = 0
    for _ in range(4 if sanitized() else 8):
        for writer in writers:
            writer.start()
        # Any moment will do.
        time.sleep(rng.uniform(0.1, 0.6))
        server.kill()
        for writer in writers:
            writer.join()
            assert not writer.wrong, (seed, writer.wrong)
            acknowledged += writer.acknowledged
        server = start(*flags, port=server.port)
        client = server.client()
        next_writers = []
        for i, writer in enumerate(writers):
            for key in writer.keys:
                served += writer.check(key, client.get(key)) is not None
            assert not writer.wrong, (seed, writer.wrong)
            again = Writer(i, rng.random(), server.port)
            again.may, again.version = writer.may, writer.version
            next_writers.append(again)
        writers = next_writers
    # The test would be worth nothing if nothing were served.
    assert acknowledged > 200 and served > (3 if sanitized() else 20), (acknowledged, served)


def test_a_newer_format_is_refused(start, servers, tmp_path):
    start().stop()
    (tmp_path / "ssd" / "format").write_text("moonpool-ssd 99\n")
    said = servers.fails("--port", "0", "--ssd-directory", tmp_path / "ssd")
    assert "ssd-directory" in said and "version 99" in said
    (tmp_path / "ssd" / "format").write_text("moonpool-ssd 1\n")
    start()


def test_directories_that_cannot_be_used(start, servers, tmp_path):
    (tmp_path / "file").write_text("x")
    said = servers.fails("--port", "0", "--ssd-directory", tmp_path / "file" / "ssd")
    assert "ssd-directory" in said and "file/ssd" in said
    said = servers.fails("--port", "0", "--ssd-directory", "/proc/moonpool")
    assert "ssd-directory" in said and "/proc/moonpool" in said
    start()
    said = servers.fails("--port", "0", "--ssd-directory", tmp_path / "ssd")
    assert "in use" in said
