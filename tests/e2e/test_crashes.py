"""kill -9 of clients and servers at any moment: nothing leaks, nobody hangs, no byte is wrong."""
import os
import random
import signal
import subprocess
import time

import pytest

from conftest import BUILD, DEADLINE_S, wait_for

CLIENT = BUILD / "tests" / "moonpool-stress-client"
# Little memory, and time to wait for what dead clients still hold of it.
FLAGS = ("--maxmemory", "96mb", "--region-size", "8mb", "--arena-size", "4mb", "--memory-wait",
         str(DEADLINE_S * 500))


class StressClient:
    def __init__(self, port, mode, seed, keys=60):
        self.process = subprocess.Popen(
            [str(CLIENT), f"moonpool://127.0.0.1:{port}?timeout_ms={DEADLINE_S * 1000}"
             f"&connect_timeout_ms={DEADLINE_S * 1000}", mode, str(seed), str(keys)],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "running\n"

    def wait_for_failure(self):
        assert self.process.stdout.readline().startswith("failed: ")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        """Ends it and returns its counts; wrong bytes fail the test."""
        self.process.send_signal(signal.SIGTERM)
        self.out, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, self.out
        counts = dict(pair.split("=") for pair in self.out.split()[-4:])
        return {name: int(count) for name, count in counts.items()}


def stats(client):
    flat = client.execute_command("KV.STATS")
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def regions(client):
    rows = client.execute_command("KV.REGIONS")
    return [{row[i].decode(): row[i + 1] for i in range(0, len(row), 2)} for row in rows]


def extents_of_live_keys(client):
    """What the pool should hold: every large value's extent, once."""
    total = 0
    for name in client.scan_iter(count=1000):
        info = client.execute_command("KV.INFO", name)
        if info is None:
            continue
        row = {info[i].decode(): info[i + 1] for i in range(0, len(info), 2)}
        total += row.get("extent-bytes", 0)
    return total


def assert_nothing_leaked(client):
    wait_for(lambda: client.execute_command("KV.SESSIONS") == [], "sessions to end")
    wait_for(lambda: all(r["kind"] == b"shared" for r in regions(client)),
             "the write arenas of dead sessions to be given up")
    wait_for(lambda: stats(client)["extent-bytes"] == extents_of_live_keys(client),
             "every extent that is not a live value's to be free")
    client.flushall()
    wait_for(lambda: stats(client)["extent-bytes"] == 0, "the pool to be empty")


@pytest.mark.parametrize("mode", ["write", "read", "hold", "mixed"])
def test_killed_clients_leave_nothing_behind(start_server, mode):
    server = start_server(*FLAGS)
    client = server.client()
    rng = random.Random(mode)
    witness = StressClient(server.port, "mixed", 1)
    for round_number in range(12):
        victims = [StressClient(server.port, mode, 100 + round_number * 10 + i) for i in range(2)]
        # Any moment will do: the first connect, the middle of a copy, between two commands.
        time.sleep(rng.uniform(0, 0.15))
        for victim in victims:
            victim.kill()
    counts = witness.stop()
    assert counts["good"] > 0 and counts["failed"] == 0, witness.out
    assert_nothing_leaked(client)


def test_killed_server_is_noticed_and_replaced(start_server):
    server = start_server(*FLAGS)
    clients = [StressClient(server.port, mode, seed)
               for seed, mode in enumerate(["write", "read", "hold", "mixed"])]
    rng = random.Random(5)
    for _ in range(6):
        time.sleep(rng.uniform(0.05, 0.3))
        server.kill()
        server = start_server(*FLAGS, port=server.port)
    client = server.client()
    # They are all at work again on the new server, over shared memory.
    wait_for(lambda: sum(1 for row in client.execute_command("KV.SESSIONS") if row[9] == b"shm")
             >= 4, "the clients to come back")
    before = stats(client)["hits"]
    wait_for(lambda: stats(client)["hits"] > before + 100, "reads on the new server")
    for stress in clients:
        counts = stress.stop()
        assert counts["good"] > 0, counts
    assert_nothing_leaked(client)


def test_killed_server_leaves_no_memory_and_no_file(start_server, tmp_path):
    server = start_server("--unixsocket", str(tmp_path / "moonpool.sock"))
    pid = server.process.pid
    attach = server.client().info("pool")["shm_attach_socket"]
    stress = StressClient(server.port, "mixed", 3)
    wait_for(lambda: stats(server.client())["commits"] > 10, "some writes")
    server.kill()
    stress.wait_for_failure()
    counts = stress.stop()
    assert counts["failed"] > 0
    # No shared-memory file or attach socket stays; the Unix socket is taken over at the next start.
    assert not any(str(pid) in name for name in os.listdir("/dev/shm"))
    with open("/proc/net/unix", encoding="ascii", errors="replace") as sockets:
        assert attach not in sockets.read()
    again = start_server("--unixsocket", str(tmp_path / "moonpool.sock"))
    assert again.client().ping()


def test_stop_while_clients_work(start_server):
    server = start_server("--maxmemory", "96mb")
    clients = [StressClient(server.port, mode, seed)
               for seed, mode in enumerate(["write", "read", "hold", "mixed"])]
    wait_for(lambda: stats(server.client())["hits"] > 100, "some work")
    assert server.stop() == 0
    for stress in clients:
        stress.stop()
