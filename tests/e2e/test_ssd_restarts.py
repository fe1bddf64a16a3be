"""What a restart serves: everything after a clean stop, nothing that is not current after kill -9."""
import os
import pathlib
import random
import signal
import time

import pytest

from conftest import sanitized, wait_for
from crash_writers import Model, Writer
from resp import encode
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
            client.pexpire(key, 10_000_000)
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
            assert (client.pttl(key) > 8_000_000) == (int(key[4:]) % 3 == 0)
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
    for i in range(100):
        client.set(f"warm:{i}", stamped(f"warm:{i}", 1, 500 * KIB))
    # Heat is told apart by seconds under this policy.
    wait_for(lambda: client.object("idletime", "warm:99") > 0, "a second to pass")
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


@pytest.mark.parametrize("nice", [10, 0, 7])
def test_threads_of_the_tier_give_way_to_the_loops(start, nice):
    server = start("--ssd-nice", nice)
    # More than RocksDB keeps in memory, so that it begins to flush.
    put_down(server.client(), {f"key:{i}": stamped(f"key:{i}", 1, MIB) for i in range(40)})
    own = os.nice(0)
    expected = {nice or own}
    found = {}

    def gave_way():
        found.clear()
        for task in pathlib.Path(f"/proc/{server.process.pid}/task").iterdir():
            try:
                stat = (task / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # a thread that has ended
            name, _, fields = stat.partition("(")[2].rpartition(")")
            found.setdefault(name, set()).add(int(fields.split()[16]))  # see proc(5): "nice"
        return all(found.get(name) == expected  # RocksDB's begin when they have something to do
                   for name in ("ssd-writer", "ssd-reader", "rocksdb:high"))

    wait_for(gave_way, "the tier's threads to give way")
    assert found["loop-0"] == found["upkeep"] == {own}, found


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


def flush_and_kill(server, model, rng):
    """kill -9 in the middle of a FLUSHALL: acknowledged or not, only the socket knows."""
    quiet = model.begin_flush()
    with server.connect() as connection:
        connection.send(encode("FLUSHALL"))
        time.sleep(rng.uniform(0, 0.003))  # any moment will do
        server.kill()
        if connection.closed() == b"+OK\r\n":
            model.end_flush(quiet)


@pytest.mark.parametrize("policy", ["evict", "through"])
def test_kill_9_under_load(start, policy):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    flags = ("--ssd-write-policy", policy, "--dram-high-watermark", "0.1", "--dram-evict-ratio",
             "0.05", "--region-size", "8mb", "--arena-size", "4mb")
    model = Model()
    server = start(*flags)
    served = rounds = 0
    # The test would be worth nothing if nothing were served.
    while rounds < (4 if sanitized() else 8) or served < 20 or model.flushes < 3:
        assert rounds < 200, (seed, served, model.flushes)
        rounds += 1
        writers = [Writer(f"writer{i}", model, rng.random(), server.port) for i in range(3)]
        if rounds == 1:
            for writer in writers:
                for key in writer.keys:
                    model.add(key)
        for writer in writers:
            writer.start()
        until = model.acknowledged + rng.randrange(20, 500)
        wait_for(lambda: model.acknowledged >= until or any(writer.wrong for writer in writers),
                 "changes")
        if rounds % 3 == 0:
            flush_and_kill(server, model, rng)
        else:
            server.kill()
        for writer in writers:
            writer.join()
            assert not writer.wrong, (seed, writer.wrong)
        server = start(*flags, port=server.port)
        client = server.client()
        for writer in writers:
            for key in writer.keys:
                version = writer.check(key, client.get(key), model.now(key))
                model.restarted(key, version)
                served += version is not None
            assert not writer.wrong, (seed, writer.wrong)
        print(f"round {rounds}: {model.acknowledged} changes and {model.flushes} FLUSHALLs, "
              f"{served} values served")


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
