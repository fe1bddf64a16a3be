"""What the tests of the SSD tier share: values that tell whose they are, and ways to move them."""
import hashlib
import itertools
import os

from conftest import wait_for

KIB = 1 << 10
MIB = 1 << 20

# Little memory and small files, so that values move and the store flushes and compacts; and a policy
# under which other writes push down whatever was read before.
FLAGS = ("--ssd-chunk", "64kb", "--ssd-write-buffer", "4mb", "--dram-high-watermark", "0.2",
         "--dram-evict-ratio", "0.1", "--maxmemory-policy", "allkeys-lru")
MEMORY = "64mb"


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
    """Writes other values until these are on the SSD alone."""
    numbers = itertools.count()
    block = os.urandom(512 * KIB)

    def down():
        if all(tier_of(client, key) == "ssd" for key in keys):
            return True
        client.set(f"filler:{next(numbers) % 64}", block)
        return False

    wait_for(down, f"{keys} to be on the SSD")


def put_down(client, values):
    """Stores a dictionary of large values and pushes them down."""
    for key, value in values.items():
        client.set(key, value)
    push_down(client, *values)


def tiers(server):
    """INFO tiers with numbers where they are numbers."""
    return {name: int(value) if value.isdigit() else value
            for name, value in server.info("tiers").items()}
