"""What the tests of the SSD tier share: values that tell whose they are, and ways to move them."""
import hashlib
import itertools
import os

from conftest import DEADLINE_S, wait_for

KIB = 1 << 10
MIB = 1 << 20

# Little memory and small files, so that values move and the store flushes and compacts; a policy
# under which other writes push down whatever was read or came up before; and time, for slow disks
# and busy machines, where the tier's threads would have less than the tests beside it.
FLAGS = ("--ssd-chunk", "64kb", "--ssd-write-buffer", "4mb", "--dram-high-watermark", "0.2",
         "--dram-evict-ratio", "0.1", "--dram-cold-share", "0", "--maxmemory-policy", "allkeys-lru",
         "--memory-wait", str(DEADLINE_S * 500), "--ssd-stop-timeout", str(DEADLINE_S),
         "--ssd-nice", "0")
MEMORY = "64mb"
FILLERS = 64


def stamped(key, version, length):
    """Bytes that no other key, version or length has, anywhere in them."""
    head = f"{key}|{version}|{length}|".encode()
    return (head + hashlib.shake_128(head).digest(max(length - len(head), 0)))[:max(length,
                                                                                   len(head))]


def version_of(key, data):
    """The version of a value that stamped() made; fails when it is not one whole value of `key`."""
    name, version, length, _ = data.split(b"|", 3)
    assert name.decode() == key, f"bytes of {name} under {key}"
    assert data == stamped(key, int(version), int(length)), f"{key}: wrong bytes"
    return int(version)


def info_of(client, key):
    """KV.INFO as a dictionary; None when there is no such key."""
    row = client.execute_command("KV.INFO", key)
    return row and {row[i].decode(): row[i + 1] for i in range(0, len(row), 2)}


def tier_of(client, key):
    info = info_of(client, key)
    return info and info["tier"].decode()


def push_down(client, *keys):
    """Writes other values until these are on the SSD alone; then nothing large is in memory, and
    nothing moves any more."""
    numbers = itertools.count()
    block = os.urandom(512 * KIB)

    def queue():
        return client.info("tiers")["tier_ssd_demotion_queue"]

    def down():
        where = {key: tier_of(client, key) for key in keys}
        gone = [key for key, tier in where.items() if tier is None]
        assert not gone, f"{gone} are gone: {client.info('tiers')}"
        if set(where.values()) == {"ssd"}:
            return True
        # No faster than the disk takes them: it is to have room for the garbage.
        if queue() == 0:
            client.set(f"filler:{next(numbers) % FILLERS}", block)
        return False

    wait_for(down, f"{keys} to be on the SSD")
    client.delete(*(f"filler:{i}" for i in range(FILLERS)))
    wait_for(lambda: queue() == 0, "the fillers to be gone")


def put_down(client, values):
    """Stores a dictionary of large values and pushes them down."""
    for key, value in values.items():
        client.set(key, value)
    push_down(client, *values)


def tiers(server):
    """INFO tiers with numbers where they are numbers."""
    return {name: int(value) if value.isdigit() else value
            for name, value in server.info("tiers").items()}
