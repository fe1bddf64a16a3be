"""The CXL tier between DRAM and SSD.  Any NUMA node stands in for one without processors: to the
server it is another tier all the same."""
import pytest

from conftest import Servers, wait_for
from resp import Reply
from shm import Session
from ssd import FLAGS, KIB, MIB, info_of, stamped, tier_of, tiers, version_of

CXL = ("--cxl-memory", "48mb", "--cxl-node", "0", "--region-size", "4mb",
       "--prefer", "far: cxl near: gpu,dram")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("cxl"))
    yield servers.start(*CXL, *FLAGS, memory="64mb")
    servers.stop_all()


@pytest.fixture
def client(server):
    connected = server.client()
    connected.flushall()
    yield connected
    connected.close()


def regions(server):
    with server.connect() as connection:
        return [dict(zip(r[::2], r[1::2])) for r in connection.value("KV.REGIONS")]


def test_values_move_there_and_back(server, client):
    keys = [f"key:{i}" for i in range(100)]  # 25 MB; DRAM takes 12
    for key in keys:
        client.set(key, stamped(key, 1, 256 * KIB))
    wait_for(lambda: tiers(server)["tier_cxl_keys"] > 40, "values to move")
    wait_for(lambda: tiers(server)["tier_cxl_demotion_queue"] == 0, "moves to end")
    where = {key: tier_of(client, key) for key in keys}
    assert set(where.values()) == {"dram", "cxl"}
    for key in keys:
        assert version_of(key, client.get(key)) == 1
    found = tiers(server)
    assert found["tier_cxl"] == "on" and found["tier_cxl_capacity"] == 48 * MIB
    assert found["tier_cxl_bytes"] > 10 * MIB and found["tier_cxl_demotions"] > 40
    assert found["tier_cxl_hits"] > 40 and found["tier_cxl_refused"] == 0
    assert found["tier_dram_keys"] + found["tier_cxl_keys"] == len(keys)
    # The oldest, read for the second time, comes back.
    moved = next(key for key in keys if where[key] == "cxl")

    def in_dram():
        assert version_of(moved, client.get(moved)) == 1
        return tier_of(client, moved) == "dram"

    wait_for(in_dram, "a value to come back")
    wait_for(lambda: tiers(server)["tier_cxl_promotions"] > 0, "it to be counted")


def test_preferences(server, client):
    client.set("far:1", stamped("far:1", 1, 200 * KIB))
    client.mset({"far:2": stamped("far:2", 1, 300 * KIB), "near:1": stamped("near:1", 1, 300 * KIB)})
    client.set("far:small", "x")
    assert [tier_of(client, key) for key in ("far:1", "far:2", "near:1", "far:small")] == \
        ["cxl", "cxl", "dram", "dram"]
    # A body that does not arrive in one piece has its extent reserved ahead.
    client.set("far:3", stamped("far:3", 1, 5 * MIB))
    assert tier_of(client, "far:3") == "cxl"
    for key in ("far:1", "far:2", "near:1", "far:3"):
        assert version_of(key, client.get(key)) == 1


def test_shared_memory_writers_prefer_too(server, client):
    session = Session(server.port)
    try:
        data = stamped("far:shm", 1, 100 * KIB)
        assert session.put("far:shm", data) is None
        assert tier_of(client, "far:shm") == "cxl" and client.get("far:shm") == data
        assert any(r[b"kind"] == b"arena" and r[b"tier"] == b"cxl" for r in regions(server))
        connection = session.connection
        [located] = connection.value("KV.LOCATE", 1, "far:shm")
        assert located[6] == b"cxl"
        [reserved] = connection.value("KV.ALLOC", 1, "other", 100 * KIB, "PREFER", "cxl,dram")
        assert next(r for r in regions(server) if r[b"region"] == reserved[1])[b"tier"] == b"cxl"
        assert connection.value("KV.ABORT", 1, "other", reserved[0]) == [1]
        [refused] = connection.value("KV.ALLOC", 1, "other", 100 * KIB, "PREFER", "gpu")
        assert refused.value == b"ERR PREFER: this server has none of the tiers gpu; it has dram and cxl"
    finally:
        session.close()
    # Its arena goes; the value, which was read twice, may come back to DRAM.
    wait_for(lambda: not any(r[b"kind"] == b"arena" for r in regions(server)), "arenas to go")
    assert client.get("far:shm") == data


def test_everything_tells(server, client):
    client.set("far:1", stamped("far:1", 1, 200 * KIB))
    with server.connect() as connection:
        def told():
            stats = connection.value("MEMORY", "STATS")
            rows = dict(zip(stats[::2], stats[1::2]))
            cxl = dict(zip(rows[b"tier.cxl"][::2], rows[b"tier.cxl"][1::2]))
            # Values of before may still be on the move.
            return cxl[b"keys"] == 1 and cxl[b"bytes"] == 200 * KIB and (rows, cxl)
        rows, cxl = wait_for(told, "the value to be told of")
        assert cxl[b"capacity"] == 48 * MIB
        assert b"tier.ssd" not in rows
        tiers_of_regions = {r[b"tier"] for r in regions(server)}
        assert tiers_of_regions == {b"dram", b"cxl"}
        assert connection.value("KV.MATCH", 1, "far:1", "WITHTIERS") == [1, 0, 1, 0]
    assert info_of(client, "far:1")["tier"] == b"cxl"


def test_on_to_the_ssd_and_over_a_restart(start_server, servers, tmp_path):
    flags = (*CXL, *FLAGS, "--ssd-directory", tmp_path / "ssd")
    server = start_server(*flags, memory="64mb")
    client = server.client()
    keys = [f"key:{i}" for i in range(320)]  # 80 MB: more than both hold
    for key in keys:
        client.set(key, stamped(key, 1, 256 * KIB))
    wait_for(lambda: {tier_of(client, key) for key in keys} == {"dram", "cxl", "ssd"},
             "values to be everywhere")
    client.delete(*keys[:10])
    assert server.stop() == 0
    server = start_server(*flags, memory="64mb")
    client = server.client()
    for key in keys[10:]:
        assert version_of(key, client.get(key)) == 1
    assert client.exists(*keys[:10]) == 0


def test_a_node_that_is_not_there(servers):
    text = servers.fails("--port", 0, "--cxl-memory", "64mb", "--cxl-node", "999")
    assert "NUMA node 999" in text
    text = servers.fails("--port", 0, "--cxl-memory", "64mb")
    assert "name the node with cxl-node" in text or "name one with cxl-node" in text


def test_without_one(start_server):
    server = start_server()
    with server.connect() as connection:
        assert connection.value("INFO", "tiers").count(b"tier_cxl") == 1
    assert server.info("tiers")["tier_cxl"] == "off"
