"""Partitions by key prefix: their shares of memory and SSD, their rules, and what is told of them."""
import pytest

from conftest import wait_for
from ssd import FLAGS, KIB, MEMORY, MIB, info_of, put_down, push_down, stamped, tier_of, tiers, \
    version_of


def numbers(text):
    return {name: float(value) if value.replace(".", "", 1).isdigit() else value
            for name, value in (field.split("=", 1) for field in text.split(","))}


def partitions(server):
    """INFO partitions by name, in their order."""
    found = {}
    for name, text in server.info("partitions").items():
        fields, prefix = text.split(",prefix=", 1)
        found[name.removeprefix("partition_")] = {**numbers(fields), "prefix": prefix}
    return found


def fill(client, prefix, count, length=256 * KIB):
    for i in range(count):
        key = f"{prefix}{i}"
        client.set(key, stamped(key, 1, length))


CHAT = "chat prefix=chat: dram=0.5 ssd=0.3 policy=allkeys-lru admission=always compression=lz4"


def test_the_setting_is_checked_at_start_and_live(start_server, servers, tmp_path):
    text = servers.fails("--port", 0, "--partitions", "chat prefix=chat: colour=red")
    assert "partitions: partition 'chat' has the unknown option 'colour'" in text
    config = tmp_path / "moonpool.conf"
    config.write_text(f'partitions "{CHAT}; batch prefix=batch/ dram=0.1 ssd=no"\n')
    server = start_server(config=config)
    client = server.client()
    found = partitions(server)
    assert list(found) == ["default", "chat", "batch"]
    assert found["chat"]["prefix"] == "chat:" and found["chat"]["dram_share"] == 0.5
    assert found["chat"]["policy"] == "allkeys-lru" and found["chat"]["admission"] == "always"
    assert found["chat"]["compression"] == "lz4" and found["batch"]["compression"] == "none"
    assert found["batch"]["ssd_share"] == "no" and found["batch"]["policy"] == "allkeys-prefix"
    assert found["default"]["dram_share"] == 0.4 and found["default"]["ssd_share"] == 0.7
    before = client.config_get("partitions")
    for wrong, why in [("a prefix=a dram=2", "a share is a number above 0"),
                       ("a prefix=a dram=0.6; b prefix=b dram=0.6", "sum up to 1.2"),
                       ("a prefix=x; b prefix=x", "the same prefix"),
                       ("default prefix=x", "keys no prefix matches"),
                       ("a", "no prefix=")]:
        with pytest.raises(Exception, match="CONFIG SET failed .*partitions.*" + why):
            client.config_set("partitions", wrong)
        assert client.config_get("partitions") == before
        assert list(partitions(server)) == ["default", "chat", "batch"]
    # All or nothing.
    with pytest.raises(Exception, match="couldn't be parsed"):
        client.config_set("partitions", "", "hz", "many")
    assert list(partitions(server)) == ["default", "chat", "batch"]
    client.config_set("partitions", "new prefix=n")
    assert list(partitions(server)) == ["default", "new"]
    client.config_rewrite()
    server.stop()
    server = start_server(config=config)
    client = server.client()
    assert client.config_get("partitions") == {"partitions": "new prefix=n"}
    client.config_set("partitions", "")
    assert partitions(server) == {}
    assert not any(name.startswith("partition_") for name in server.info("everything"))
    assert not any(name.startswith("partition-") for name in server.stats())


def test_shares_of_memory_hold_whoever_writes(start_server):
    server = start_server("--partitions", "a prefix=a: dram=0.5; b prefix=b: dram=0.25",
                          "--maxmemory-policy", "allkeys-lru", memory="64mb")
    client = server.client()
    fill(client, "b:", 400)
    assert partitions(server)["b"]["dram_bytes"] > 45 * MIB  # what is free is anybody's
    for _ in range(2):
        for prefix in ("a:", "other", "b:"):
            fill(client, prefix, 400)

    def shares():
        found = partitions(server)
        used = sum(row["dram_bytes"] for row in found.values())
        return {name: row["dram_bytes"] / used for name, row in found.items()}

    wait_for(lambda: abs(shares()["a"] - 0.5) < 0.07 and abs(shares()["b"] - 0.25) < 0.07 and
             abs(shares()["default"] - 0.25) < 0.07, f"shares to hold: {shares()}")
    assert all(row["evictions"] == row["drops"] > 0 for row in partitions(server).values())
    wait_for(lambda: sum(row["dram_bytes"] for row in partitions(server).values()) == int(
        server.info("memory")["used_memory_extents"]), "all memory to be somebody's")


def test_reads_and_keys_are_told_by_partition(start_server):
    server = start_server("--partitions", "a prefix=a:; ab prefix=a:b")
    client = server.client()
    client.set("a:large", b"x" * MIB)
    client.set("a:b:small", "x")
    client.set("other", b"x" * MIB)
    assert info_of(client, "a:large")["partition"] == b"a"
    assert info_of(client, "a:b:small")["partition"] == b"ab"
    assert info_of(client, "other")["partition"] == b"default"
    client.get("a:large")
    client.mget("a:large", "a:b:small", "a:none", "other")
    client.execute_command("KV.LOCATE", 3, "a:large", "a:b:none", "other")
    found = partitions(server)
    assert {name: (row["hits"], row["misses"]) for name, row in found.items()} == {
        "default": (2, 0), "a": (3, 1), "ab": (1, 1)}
    assert found["a"]["dram_keys"] == 1 and found["a"]["dram_bytes"] == MIB
    assert found["ab"]["dram_keys"] == 0
    stats = server.stats()
    assert stats["partition-a-hits"] == 3 and stats["partition-a-dram-bytes"] == MIB
    client.config_resetstat()
    assert partitions(server)["a"]["hits"] == 0 and partitions(server)["a"]["dram_keys"] == 1
    client.config_set("partitions", "all prefix=a:; o prefix=o")
    assert info_of(client, "a:b:small")["partition"] == b"all"
    found = partitions(server)
    assert [row["dram_keys"] for row in found.values()] == [0, 1, 1]
    client.flushall()
    wait_for(lambda: sum(row["dram_bytes"] for row in partitions(server).values()) == 0,
             "nothing to be counted")


def test_each_partition_has_its_rules_on_the_ssd(start_server, tmp_path):
    flags = ("--ssd-directory", tmp_path / "ssd", *FLAGS, "--partitions",
             "off prefix=off: ssd=no; packed prefix=packed: compression=lz4 admission=always;"
             "cold prefix=cold: admission=never")
    server = start_server(*flags, memory=MEMORY)
    client = server.client()
    values = {}
    for prefix in ("packed:", "cold:", "other:"):
        for i in range(4):
            key = f"{prefix}{i}"
            values[key] = stamped(key, 1, 100 * KIB) + b"-" * 400 * KIB
    put_down(client, values)
    off = {f"off:{i}": stamped(f"off:{i}", 1, 200 * KIB) for i in range(10)}
    for key, value in off.items():
        client.set(key, value)

    def dropped():
        fill(client, "filler:", 80)
        return client.exists(*off) == 0

    wait_for(dropped, "what is kept off the SSD to be dropped")
    found = partitions(server)
    assert found["off"]["ssd_keys"] == 0 and found["off"]["drops"] == 10
    assert found["packed"]["ssd_keys"] == 4 and found["packed"]["ssd_bytes"] == 4 * 500 * KIB
    # What a read brings up: the first one already, or none ever.
    before = tiers(server)
    assert client.get("packed:0") == values["packed:0"]
    assert tiers(server)["tier_ssd_promotions"] == before["tier_ssd_promotions"] + 1
    for _ in range(3):
        push_down(client, "cold:0")
        before = tiers(server)
        assert client.get("cold:0") == values["cold:0"]
        assert tiers(server)["tier_ssd_promotions"] == before["tier_ssd_promotions"]
    for key, value in values.items():
        assert client.get(key) == value
    # All of it is there after a clean stop, and what is there after a crash; counted either way.
    for clean in (True, False):
        server.stop() if clean else server.kill()
        server = start_server(*flags, memory=MEMORY, port=server.port)
        client = server.client()
        present = {"packed": 0, "cold": 0}
        for key, value in values.items():
            data = client.get(key)
            assert data == value or (data is None and not clean), tier_of(client, key)
            name = key.split(":")[0]
            if name in present and data is not None:
                present[name] += 1
        found = partitions(server)
        assert {name: found[name]["ssd_keys"] for name in present} == present
        assert found["off"]["ssd_keys"] == 0
    client.flushall()
    wait_for(lambda: all(row["ssd_bytes"] == row["ssd_keys"] == row["dram_bytes"] == 0
                         for row in partitions(server).values()), "nothing to be counted")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_each_partition_is_compressed_as_it_says(start_server, tmp_path, codec):
    def plain(*flags):
        """Whether the values of prefix p: can be read in the files."""
        folder = tmp_path / "-".join(flags).replace(" ", "").replace(":", "")[-40:]
        server = start_server("--ssd-directory", folder, *FLAGS, *flags, memory=MEMORY)
        values = {f"p:{i}": stamped(f"p:{i}", 1, 100 * KIB) + b"-" * 400 * KIB for i in range(4)}
        put_down(server.client(), values)
        server.stop()
        found = any(b"-" * 1000 in path.read_bytes() for path in folder.rglob("*.blob"))
        server = start_server("--ssd-directory", folder, *FLAGS, memory=MEMORY)
        for key, value in values.items():
            assert server.client().get(key) == value
        server.stop()
        return found

    assert not plain("--partitions", f"p prefix=p: compression={codec}")
    assert plain("--partitions", "p prefix=p: compression=none", "--ssd-compression", codec)
    assert not plain("--partitions", "p prefix=p:", "--ssd-compression", codec)
    assert plain("--partitions", f"q prefix=q: compression={codec}")


def test_shares_of_the_ssd(start_server, tmp_path):
    server = start_server("--ssd-directory", tmp_path / "ssd", "--ssd-capacity", "64mb", *FLAGS,
                          "--partitions", "small prefix=small: ssd=0.1; large prefix=large: ssd=0.6",
                          memory=MEMORY)
    client = server.client()
    rounds = iter(range(10_000))

    def settled():
        # What the disk has no room for just then is dropped, so not every round is alike.
        for prefix, count in (("large:", 120), ("small:", 120), (f"other{next(rounds)}:", 240)):
            fill(client, prefix, count)
        found = partitions(server)
        return found["small"]["drops"] > 20 and \
            found["large"]["ssd_bytes"] > 2 * found["small"]["ssd_bytes"] > 0

    wait_for(settled, "the small one to give")


def test_changes_under_load(start_server, tmp_path):
    """Clients see their values through every change of partitions, on both tiers."""
    import random
    import threading

    server = start_server("--ssd-directory", tmp_path / "ssd", *FLAGS, memory=MEMORY)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    wrong, counts, stop = [], [0, 0, 0], threading.Event()

    def work(number):
        rng = random.Random(seed + number)
        client = server.client()
        versions = {}
        try:
            while not stop.is_set() and not wrong:
                key = f"{number}:{rng.randrange(60)}"
                if rng.random() < 0.5:
                    versions[key] = versions.get(key, 0) + 1
                    client.set(key, stamped(key, versions[key], rng.choice([100, 90 * KIB, 300 * KIB])))
                else:
                    data = client.get(key)
                    if data is not None and version_of(key, data) != versions.get(key):
                        wrong.append(f"{key} is {version_of(key, data)}, not {versions.get(key)}")
                counts[number] += 1
        except Exception as failure:  # a thread's failure is the test's
            wrong.append(repr(failure))
        client.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    client = server.client()
    sets = ["", "a prefix=0: dram=0.5; b prefix=1: ssd=no", "b prefix=0: compression=zstd ssd=0.2",
            "c prefix=1: policy=allkeys-prefix admission=never; a prefix=2: admission=always",
            "a prefix=0: policy=noeviction dram=0.05; c prefix=2: policy=volatile-lru"]
    rng = random.Random(seed)
    for _ in range(40):
        before = sum(counts)
        client.config_set("partitions", rng.choice(sets))
        wait_for(lambda before=before: wrong or sum(counts) > before + 15, "the clients to go on")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, (seed, wrong)
    client.config_set("partitions", sets[1])
    client.flushall()
    wait_for(lambda: all(row["ssd_bytes"] == row["dram_bytes"] == 0
                         for row in partitions(server).values()), "nothing to be counted")
