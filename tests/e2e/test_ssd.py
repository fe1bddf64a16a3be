"""Values on the SSD, read and changed by plain clients: as if they were in memory."""
import random
import select

import pytest
import redis

from conftest import Servers, wait_for
from resp import Reply, encode
from ssd import FLAGS, KIB, MEMORY, MIB, info_of, put_down, push_down, stamped, tier_of, tiers, \
    version_of
from test_crashes import StressClient


@pytest.fixture(scope="module")
def tiered(tmp_path_factory):
    """One server for the whole file; one loop, so that whoever blocks it blocks everybody."""
    folder = tmp_path_factory.mktemp("tiered")
    servers = Servers(folder)
    yield servers.start("--ssd-directory", folder / "ssd", "--io-threads", "1", *FLAGS,
                        memory=MEMORY)
    servers.stop_all()


@pytest.fixture
def client(tiered):
    connected = tiered.client()
    connected.flushall()
    yield connected
    connected.close()


def test_more_than_memory_holds_comes_back(tiered, client):
    rng = random.Random(1)
    lengths = [30, 1000, 64 * KIB, 64 * KIB + 1, 200_001, MIB - 1, MIB, 3 * MIB + 17]
    keys = {f"key:{i}": (i, lengths[i % len(lengths)]) for i in range(200)}
    for key, (version, length) in keys.items():
        assert client.set(key, stamped(key, version, length))
    for _ in range(2):
        order = list(keys)
        rng.shuffle(order)
        for key in order:
            data = client.get(key)
            assert data is not None, f"{key} is gone: {info_of(client, key)}"
            assert version_of(key, data) == keys[key][0]
    found = tiers(tiered)
    assert found["tier_ssd"] == "on" and found["tier_ssd_last_error"] == "none"
    assert found["tier_ssd_demotions"] > 50 and found["tier_ssd_hits"] > 50
    assert found["tier_ssd_lost"] == found["tier_ssd_drops_full"] == 0


def test_small_values_come_back_but_for_the_smallest(tiered, client):
    keys = {f"small:{i}": (i + 1, 8 * KIB if i % 4 else 100) for i in range(14_000)}
    for key, (version, length) in keys.items():
        assert client.set(key, stamped(key, version, length))
    gone = 0
    for key, (version, length) in keys.items():
        data = client.get(key)
        if data is not None:
            assert version_of(key, data) == version
        elif length > 100:
            gone += 1
    # A few are given up when memory fills to its end before the upkeep wakes; it would be 3,000.
    assert gone < 300
    assert tiers(tiered)["tier_ssd_lost"] == 0


def test_pipelines_keep_their_order(tiered, client):
    values = {key: stamped(key, 1, 300 * KIB) for key in ("a", "b", "c", "d")}
    put_down(client, values)
    new = stamped("a", 2, 70 * KIB)
    with tiered.connect() as connection:
        replies = connection.pipeline([
            ("GET", "a"), ("SET", "a", new), ("GET", "a"), ("DEL", "b"), ("GET", "b"),
            ("GET", "c"), ("SET", "small", "1"), ("GETRANGE", "d", 100_000, 100_009),
            ("INCR", "small"), ("DEL", "d", "c"), ("MGET", "a", "c", "small"), ("PING",)])
    assert replies == [
        Reply("$", values["a"]), Reply("+", b"OK"), Reply("$", new), Reply(":", 1),
        Reply("$", None), Reply("$", values["c"]), Reply("+", b"OK"),
        Reply("$", values["d"][100_000:100_010]), Reply(":", 2), Reply(":", 2),
        Reply("*", [Reply("$", new), Reply("$", None), Reply("$", b"2")]), Reply("+", b"PONG")]


LENGTH = 150 * KIB + 3
VALUE = stamped("old", 7, LENGTH)
NEW = stamped("new", 8, 90 * KIB)
# A command on a value on the SSD, what it answers, and what the key holds afterwards.
COMMANDS = [
    (("GET", "KEY"), VALUE, VALUE),
    (("STRLEN", "KEY"), LENGTH, VALUE),
    (("EXISTS", "KEY"), 1, VALUE),
    (("TYPE", "KEY"), b"string", VALUE),
    (("OBJECT", "ENCODING", "KEY"), b"raw", VALUE),
    (("GETRANGE", "KEY", 70_000, -70_000), VALUE[70_000:-69_999], VALUE),
    (("GETRANGE", "KEY", -5, -1), VALUE[-5:], VALUE),
    (("GETRANGE", "KEY", 9_999_999, -1), b"", VALUE),
    (("APPEND", "KEY", "tail"), LENGTH + 4, VALUE + b"tail"),
    (("SETRANGE", "KEY", 5, "inside"), LENGTH, VALUE[:5] + b"inside" + VALUE[11:]),
    (("INCR", "KEY"), redis.ResponseError, VALUE),
    (("INCRBYFLOAT", "KEY", 1), redis.ResponseError, VALUE),
    (("GETDEL", "KEY"), VALUE, None),
    (("GETEX", "KEY", "PERSIST"), VALUE, VALUE),
    (("GETEX", "KEY", "PXAT", 1), VALUE, None),
    (("GETSET", "KEY", NEW), VALUE, NEW),
    (("SET", "KEY", NEW, "GET"), VALUE, NEW),
    (("SET", "KEY", "short", "XX", "GET"), VALUE, b"short"),
    (("SET", "KEY", NEW, "NX"), None, VALUE),
    (("SET", "KEY", NEW, "NX", "GET"), VALUE, VALUE),
    (("SETNX", "KEY", "x"), 0, VALUE),
    (("SET", "KEY", "short"), b"OK", b"short"),
    (("MSET", "KEY", NEW), b"OK", NEW),
    (("MSETNX", "KEY", NEW, "KEY:other", "1"), 0, VALUE),
    (("DEL", "KEY"), 1, None),
    (("UNLINK", "KEY"), 1, None),
    (("PEXPIREAT", "KEY", 1), 1, None),
    (("EXPIRE", "KEY", 1000), 1, VALUE),
    (("PERSIST", "KEY"), 0, VALUE),
    (("TOUCH", "KEY"), 1, VALUE),
    (("KV.MATCH", 1, "KEY"), 1, VALUE),
    (("KV.PREFETCH", 2, "KEY", "KEY:none"), [1, 0], VALUE),
    (("KV.PIN", 1, "KEY"), [1], VALUE),
    (("KV.DROP", "MATCH", "KEY"), b"OK", None),
    (("RENAME", "KEY", "KEY"), b"OK", VALUE),
    (("RENAMENX", "KEY", "KEY"), 0, VALUE),
]


def test_every_command_on_a_value_on_the_ssd(tiered, client):
    keys = [f"command:{i}" for i in range(len(COMMANDS))]
    put_down(client, {key: VALUE for key in keys})
    raw = redis.Redis(port=tiered.port)
    raw.response_callbacks.clear()
    for key, (command, reply, after) in zip(keys, COMMANDS):
        if tier_of(client, key) != "ssd":
            push_down(client, key)
        words = [word.replace("KEY", key) if isinstance(word, str) else word for word in command]
        if reply is redis.ResponseError:
            with pytest.raises(redis.ResponseError, match="not a"):
                raw.execute_command(*words)
        else:
            assert raw.execute_command(*words) == reply, command
        assert raw.execute_command("GET", key) == after, command
    raw.close()


def test_values_keep_names_and_times_across_tiers(client):
    names = ("from", "to", "copied", "expiring")
    values = {key: stamped(key, 1, 200 * KIB) for key in names}
    put_down(client, values)
    client.pexpire("from", 10_000_000)
    client.pexpire("expiring", 5_000_000)
    assert client.rename("from", "to")
    assert tier_of(client, "to") == "ssd"  # its bytes stayed where they were
    assert client.get("from") is None and client.get("to") == values["from"]
    assert 9_000_000 < client.pttl("to") <= 10_000_000
    assert client.copy("copied", "copy") == 1
    assert client.get("copied") == client.get("copy") == values["copied"]
    client.delete("copied")
    assert client.get("copy") == values["copied"]
    push_down(client, "copy", "to")
    assert client.get("copy") == values["copied"] and client.get("to") == values["from"]
    assert 4_000_000 < client.pttl("expiring") <= 5_000_000
    assert client.persist("expiring") == 1 and client.pttl("expiring") == -1
    assert client.get("expiring") == values["expiring"] and client.pttl("expiring") == -1


def test_time_frees_the_ssd_without_reading(tiered, client):
    put_down(client, {f"dies:{i}": stamped("dies", i, 128 * KIB) for i in range(20)})
    before = tiers(tiered)
    assert before["tier_ssd_bytes"] == 20 * 128 * KIB
    for i in range(20):
        client.pexpire(f"dies:{i}", 1)
    wait_for(lambda: tiers(tiered)["tier_ssd_bytes"] == 0, "the SSD to be free")
    assert tiers(tiered)["tier_ssd_loaded_bytes"] == before["tier_ssd_loaded_bytes"]


def test_tiers_are_told(tiered, client):
    put_down(client, {key: stamped(key, 1, 100 * KIB) for key in ("one", "two")})
    client.set("three", "small")
    match = ("KV.MATCH", 4, "one", "two", "three", "none", "WITHTIERS")
    assert client.execute_command(*match) == [3, 0, 1, 2]
    info = info_of(client, "one")
    assert info["tier"] == b"ssd" and info["length"] == 100 * KIB and info["ssd-version"] > 0
    assert client.memory_usage("one") < 1000
    assert client.execute_command("KV.PREFETCH", 3, "one", "three", "none") == [1, 1, 0]
    wait_for(lambda: tier_of(client, "one") == "dram", "the value to come up")
    assert info_of(client, "one")["ssd-version"] == info["ssd-version"]  # and it is still there
    assert client.execute_command(*match) == [3, 0, 2, 1]
    hits = tiers(tiered)["tier_ssd_hits"]
    assert version_of("one", client.get("one")) == 1
    assert tiers(tiered)["tier_ssd_hits"] == hits


def test_memory_stats_tells_by_tier(tiered, client):
    put_down(client, {f"down:{i}": stamped(f"down:{i}", 1, 100 * KIB) for i in range(10)})
    client.set("small", "x")
    client.set("large", stamped("large", 1, 100 * KIB))

    def told():
        before, stats, after = tiers(tiered), client.memory_stats(), tiers(tiered)
        # Eviction may still be moving values.
        return before == after and (stats, after)
    stats, now = wait_for(told, "values to stay where they are")
    ssd = dict(zip(stats["tier.ssd"][::2], stats["tier.ssd"][1::2]))
    assert ssd[b"keys"] == now["tier_ssd_keys"] >= 10
    assert ssd[b"bytes"] == now["tier_ssd_bytes"] >= 10 * 100 * KIB
    assert ssd[b"capacity"] == now["tier_ssd_capacity"]
    dram = dict(zip(stats["tier.dram"][::2], stats["tier.dram"][1::2]))
    assert dram[b"keys"] + ssd[b"keys"] == stats["keys.count"] == client.dbsize()
    assert dram[b"bytes"] == stats["dataset.bytes"] > 0
    assert dram[b"bytes"] == stats["keyspace.bytes"] + stats["extents.bytes"]
    assert 0 < float(stats["dataset.percentage"]) <= 100
    with tiered.connect() as connection:  # RESP3 has maps and doubles
        connection.value("HELLO", "3")
        stats = connection.value("MEMORY", "STATS")
        assert stats[b"tier.ssd"].keys() == ssd.keys() and stats[b"tier.dram"].keys() == dram.keys()
        assert 0 < float(stats[b"dataset.percentage"]) <= 100


def test_mget_brings_everything_up(tiered, client):
    values = {f"many:{i}": stamped(f"many:{i}", i, 90 * KIB + i) for i in range(60)}
    put_down(client, values)
    assert client.mget(list(values) + ["none"]) == [*values.values(), None]


def test_others_do_not_wait(tiered, client):
    values = {f"slow:{i}": stamped(f"slow:{i}", i, MIB) for i in range(16)}
    served = rounds = 0
    with tiered.connect() as slow, tiered.connect() as quick:
        # Whoever waited for the 16 MB would be served once a round at most; who is not may be so
        # too, on a machine that gives this process its turn late.
        while served <= rounds:
            assert rounds < 50, (served, rounds)
            put_down(client, values)
            slow.send(encode("MGET", *values))
            while not select.select([slow.socket], [], [], 0)[0]:
                assert quick.value("PING") == b"PONG"
                served += 1
            assert [reply.value for reply in slow.reply().value] == list(values.values())
            rounds += 1


def test_clients_that_leave_while_they_wait(tiered, client):
    values = {f"left:{i}": stamped(f"left:{i}", i, 500 * KIB) for i in range(20)}
    put_down(client, values)
    for i in range(60):
        connection = tiered.connect()
        connection.send(encode("GET", f"left:{i % 20}") + encode("SET", f"after:{i}", "x" * 70_000)
                        + encode("MGET", *values))
        if i % 3 == 0:
            for row in client.client_list():
                if row["cmd"] != "client|list":
                    client.client_kill_filter(_id=row["id"])
        connection.close()
    wait_for(lambda: tiers(tiered)["tier_ssd_load_queue"] == 0, "the disk to be idle")
    wait_for(lambda: len(client.client_list()) == 1, "the connections to be gone")
    for key, value in values.items():
        assert client.get(key) == value


def test_descriptors_are_of_values_that_came_up(tiered, client):
    put_down(client, {f"located:{i}": stamped("located", i, 100 * KIB + i) for i in range(5)})
    with tiered.connect() as connection:
        connection.value("KV.HELLO", 1)
        found = connection.value("KV.LOCATE", 6, *(f"located:{i}" for i in range(5)), "none")
        assert [row and row[2] for row in found] == [*(100 * KIB + i for i in range(5)), None]
        assert all(tier_of(client, f"located:{i}") == "dram" for i in range(5))


def test_libmoonpool_reads_what_is_on_the_ssd(tmp_path, start_server):
    server = start_server("--ssd-directory", tmp_path / "ssd", "--region-size", "8mb",
                          "--arena-size", "4mb", *FLAGS, memory="96mb")
    stressed = [StressClient(server.port, mode, seed, keys=250)
                for seed, mode in enumerate(["mixed", "write", "read"])]
    wait_for(lambda: tiers(server)["tier_ssd_hits"] > 100, "reads from the SSD")
    for stress in stressed:
        counts = stress.stop()
        assert counts["failed"] == counts["wrong"] == 0 and counts["good"] > 0, stress.out
