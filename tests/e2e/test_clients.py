"""Client libraries: redis-py and hiredis."""
import subprocess
import threading

import pytest
import redis

from conftest import BUILD, DEADLINE_S
from test_differential import pattern


def test_values_of_every_kind(client):
    values = {b"plain": b"text", b"empty": b"", b"binary\x00\r\n": bytes(range(256)),
              "snow \u2603".encode(): "\u2603".encode(), b"number": b"12",
              b"inline": pattern(65535), b"extent": pattern(65536), b"large": pattern(5_000_000)}
    for key, value in values.items():
        assert client.set(key, value)
    for key, value in values.items():
        assert client.get(key) == value
        assert client.strlen(key) == len(value)
        assert client.exists(key) == 1
    assert client.mget(*values, "missing") == [*values.values(), None]
    assert client.getrange("large", 100_000, 299_999) == values[b"large"][100_000:300_000]
    assert set(client.keys()) == set(values)
    assert client.delete(*values) == len(values)
    assert client.get("plain") is None


def test_options_of_set(client):
    assert client.set("k", "v", ex=100, nx=True) is True
    assert client.set("k", "w", nx=True) is None
    assert 0 < client.ttl("k") <= 100
    assert 0 < client.pttl("k") <= 100_000
    assert client.set("k", "x", xx=True, keepttl=True, get=True) == b"v"
    assert client.ttl("k") > 0
    assert client.set("k", "y", pxat=9_999_999_999_000)
    assert client.execute_command("PEXPIRETIME", "k") == 9_999_999_999_000
    assert client.persist("k") is True
    assert client.ttl("k") == -1
    assert client.ttl("missing") == -2
    assert client.expire("k", 50, nx=True) is True
    assert client.expire("k", 10, gt=True) is False
    assert client.getex("k", persist=True) == b"y"
    assert client.getdel("k") == b"y"
    assert client.setrange("k", 3, "z") == 4
    assert client.incrbyfloat("f", 1.5) == 1.5
    assert client.copy("f", "g") is True
    assert client.rename("g", "h") is True
    assert client.type("h") == b"string"
    with pytest.raises(redis.ResponseError, match="no such key"):
        client.rename("missing", "x")


def test_pipelines(client):
    pipe = client.pipeline(transaction=False)
    for i in range(5000):
        pipe.set(f"k:{i}", i)
        pipe.get(f"k:{i}")
        pipe.incrby("sum", i)
    results = pipe.execute()
    assert results[1::3] == [str(i).encode() for i in range(5000)]
    assert results[-1] == sum(range(5000))
    # An error in the middle does not disturb the others.
    pipe = client.pipeline(transaction=False)
    pipe.set("word", "x")
    pipe.incr("word")
    pipe.get("word")
    results = pipe.execute(raise_on_error=False)
    assert results[0] is True and isinstance(results[1], redis.ResponseError)
    assert results[2] == b"x"


def test_scan_iter(client):
    names = {f"user:{i}".encode() for i in range(3000)}
    client.mset({name: b"v" for name in names})
    client.mset({f"other:{i}": "v" for i in range(100)})
    seen = list(client.scan_iter(match="user:*", count=37))
    assert set(seen) == names
    # A key that is there all the time is seen, whatever comes and goes meanwhile.
    seen = set()
    for i, name in enumerate(client.scan_iter(count=10)):
        seen.add(name)
        client.set(f"new:{i}", "v")
        client.delete(f"other:{i}")
    assert names <= seen


def test_decoded_responses_and_names(server):
    client = server.client(decode_responses=True, client_name="tester")
    assert client.set("k", "\u2603")
    assert client.get("k") == "\u2603"
    assert client.client_getname() == "tester"
    assert client.client_id() > 0
    assert any(row["name"] == "tester" for row in client.client_list())
    assert client.config_get("timeout") == {"timeout": "0"}
    assert client.config_set("timeout", 10) is True
    assert client.info()["redis_version"].startswith("7.")
    assert client.info("keyspace")["db0"]["keys"] == 1
    assert client.time()[0] > 1_600_000_000
    assert client.dbsize() == 1
    assert client.command_count() > 60
    assert "get" in client.command()
    assert client.memory_usage("k") > 0
    assert client.object("encoding", "k") == "embstr"
    assert client.echo("hi") == "hi"
    assert client.flushall() is True
    assert client.ping() is True


def test_many_threads_share_a_pool(server):
    """Every thread sees the values it wrote, and counters add up."""
    pool = redis.ConnectionPool(port=server.port, max_connections=16, socket_timeout=DEADLINE_S)
    failures = []

    def work(number):
        try:
            client = redis.Redis(connection_pool=pool)
            for i in range(200):
                value = pattern(i * 700) + b"%d" % number
                client.set(f"{number}:{i % 10}", value)
                assert client.get(f"{number}:{i % 10}") == value
                client.incr("total")
        except Exception as failure:  # pylint: disable=broad-except
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert server.client().get("total") == b"2400"


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_hiredis(start_server, tmp_path, over):
    path = tmp_path / "socket"
    server = start_server("--unixsocket", str(path))
    program = BUILD / "tests" / "hiredis_client"
    ended = subprocess.run([program, str(server.port) if over == "tcp" else str(path)],
                           capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended
