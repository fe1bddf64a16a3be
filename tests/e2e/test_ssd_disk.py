"""Disks that are full, or return other bytes than were written: the cache goes on and never lies."""
import itertools
import random
import subprocess

import pytest

from conftest import wait_for
from ssd import FLAGS, KIB, MEMORY, MIB, put_down, stamped, tiers, version_of


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", path],
                             capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs ({mounted.stderr.strip()}); SsdTierFaultTest covers "
                    "a full disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def check_all(client, versions):
    """Every key is its current version or gone; returns how many are there."""
    found = 0
    for key, version in versions.items():
        data = client.get(key)
        if data is not None:
            assert version is not None, f"{key} came back"
            assert version_of(key, data) == version
            found += 1
    return found


def test_a_full_disk(start_server, small_disk):
    server = start_server("--ssd-directory", small_disk / "ssd", "--ssd-capacity", "1gb", *FLAGS,
                          memory=MEMORY)
    client = server.client()
    rng = random.Random(3)
    numbers = itertools.count(1)
    versions = {}

    def write(count):
        for _ in range(count):
            key = f"key:{rng.randrange(300)}"
            version = next(numbers)
            client.set(key, stamped(key, version, 300 * KIB))
            versions[key] = version
            if rng.random() < 0.1:
                gone = rng.choice(list(versions))
                client.delete(gone)
                versions[gone] = None

    write(300)
    wait_for(lambda: write(5) or tiers(server)["tier_ssd"] == "failing", "the disk to be full")
    found = tiers(server)
    assert "space" in found["tier_ssd_last_error"], found
    # It goes on from memory.
    for _ in range(3):
        write(50)
        assert check_all(client, versions) > 5
    wait_for(lambda: write(5) or tiers(server)["tier_ssd_drops_refused"] > 0, "values to be dropped")
    # Somebody makes room, and it recovers by itself.
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    before = tiers(server)["tier_ssd_demotions"]
    wait_for(lambda: write(5) or (tiers(server)["tier_ssd"] == "on" and
                                  tiers(server)["tier_ssd_demotions"] > before + 20),
             "the tier to recover")
    assert check_all(client, versions) > 20
    server.kill()
    server = start_server("--ssd-directory", small_disk / "ssd", *FLAGS, memory=MEMORY,
                          port=server.port)
    check_all(server.client(), versions)
    server.stop()


def test_a_full_disk_and_kill_9(start_server, small_disk):
    """What was acknowledged while nothing could be written is not undone either."""
    port = None
    versions = {}
    rng = random.Random(4)
    numbers = itertools.count(1)
    # Full when the test says so, and not before: what pushes the values down takes room as well.
    subprocess.run(["mount", "-o", "remount,size=300m", small_disk], check=True)
    for _ in range(3):
        server = start_server("--ssd-directory", small_disk / "ssd", *FLAGS, memory=MEMORY,
                              port=port)
        port = server.port
        client = server.client()
        check_all(client, versions)
        ballast = small_disk / "ballast"
        for i in range(40):
            versions[f"key:{i}"] = next(numbers)
        put_down(client, {key: stamped(key, version, 200 * KIB)
                          for key, version in versions.items() if version is not None})
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 * KIB))
            except OSError:
                pass
        for i in range(20):
            key = f"key:{rng.randrange(40)}"
            client.delete(key)
            versions[key] = None
        check_all(client, versions)
        server.kill()
        ballast.unlink()


def test_garbage_in_the_files_is_a_miss(start_server, tmp_path):
    server = start_server("--ssd-directory", tmp_path / "ssd", *FLAGS, memory=MEMORY)
    versions = {f"key:{i}": i for i in range(150)}
    put_down(server.client(), {key: stamped(key, version, 200 * KIB)
                               for key, version in versions.items()})
    server.stop()
    rng = random.Random(5)
    damaged = 0
    for path in sorted((tmp_path / "ssd" / "payload").glob("*.blob")):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            for at in range(MIB, size - 64 * KIB, 3 * MIB):
                file.seek(at)
                file.write(rng.randbytes(5000))
                damaged += 1
    assert damaged > 5
    server = start_server("--ssd-directory", tmp_path / "ssd", *FLAGS, memory=MEMORY)
    client = server.client()
    found = check_all(client, versions)
    lost = tiers(server)["tier_ssd_lost"]
    # What came up ahead of being asked for may be lost as well.
    assert 0 < len(versions) - found <= lost <= 2 * damaged  # where one ends and another begins
    assert client.exists(*versions) == found  # what was lost is gone for good
    assert tiers(server)["tier_ssd_last_error"] != "none"
    assert check_all(client, versions) == found
