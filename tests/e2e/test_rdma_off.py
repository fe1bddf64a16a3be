"""RDMA where there is none: said once and clearly, and everything else works."""
import pathlib

import pytest

# Nothing is called that, so these servers have no NIC wherever the tests run.
NO_NIC = ("--rdma-devices", "no_such_device")


def hello(connection, *options):
    flat = connection.value("KV.HELLO", "1", *options)
    return dict(zip(flat[::2], flat[1::2]))


def names(answer):
    return [transport[1] for transport in answer[b"transports"]]


def error_of(connection, *command):
    reply = connection.call(*command)
    assert reply.kind == "-", reply
    return reply.value.decode()


@pytest.mark.parametrize("wanted, level", [("auto", "*"), ("yes", "#")])
def test_the_reason_is_in_the_log_once_and_in_info(start_server, wanted, level):
    server = start_server("--rdma", wanted, *NO_NIC)
    lines = [line for line in server.text().splitlines() if "RDMA is not used" in line]
    assert len(lines) == 1 and f" {level} RDMA is not used: " in lines[0], server.text()
    info = server.info("rdma")
    assert info["rdma"] == "off"
    assert info["rdma_reason"] and lines[0].endswith(info["rdma_reason"])
    client = server.client()
    client.set("key", "x" * 200_000)
    assert client.get("key") == b"x" * 200_000


def test_switched_off(start_server):
    server = start_server("--rdma", "no")
    assert server.info("rdma")["rdma_reason"] == "rdma is 'no' in the configuration"
    assert "RDMA" not in server.text()


def test_hello_offers_what_there_is(start_server):
    with start_server(*NO_NIC).connect() as connection:
        assert names(hello(connection)) == [b"shm", b"tcp"]
        assert names(hello(connection, "TRANSPORTS", "2", "rdma", "shm")) == [b"shm", b"tcp"]
        assert names(hello(connection, "TRANSPORTS", "1", "rdma")) == [b"tcp"]


MOVES = [("KV.READ", "1", "key", "1", "0", "100"), ("KV.WRITE", "1", "key", "1", "0", "100")]


@pytest.mark.parametrize("command", [("KV.TOKEN",), ("KV.TOKEN", "2"), *MOVES])
def test_commands_say_what_is_missing(start_server, command):
    with start_server("--rdma", "no").connect() as connection:
        assert error_of(connection, *command) == "ERR KV.HELLO comes first"
        hello(connection)
        assert error_of(connection, *command) == (
            "ERR there is no RDMA here: rdma is 'no' in the configuration")
        assert connection.value("EXISTS", "key") == 0


def test_syntax_comes_first(server):
    with server.connect() as connection:
        for command in MOVES:
            assert "numkeys" in error_of(connection, command[0], "0", *command[2:])
            assert "Number of keys" in error_of(connection, command[0], "2", *command[2:])
            assert "wrong number" in error_of(connection, *command[:-1])
        assert error_of(connection, *MOVES[0], "NX") == "ERR syntax error"
        assert error_of(connection, *MOVES[1], "NX", "XX") == "ERR syntax error"
        assert "invalid expire time in 'kv.write'" in error_of(connection, *MOVES[1], "EX", "0")
        assert error_of(connection, "KV.TOKEN", "1", "2") == "ERR syntax error"
        assert "not an integer" in error_of(connection, "KV.TOKEN", "x")


def test_keys_and_flags_are_told(server):
    with server.connect() as connection:
        keys = connection.value("COMMAND", "GETKEYS", "KV.WRITE", "2", "a", "1", "0", "9", "b", "1", "0", "9",
                                "NX")
        assert keys == [b"a", b"b"]
        assert connection.value("COMMAND", "GETKEYS", *MOVES[0]) == [b"key"]
        read, write = (set(row[2]) for row in connection.value("COMMAND", "INFO", "kv.read", "kv.write"))
        assert {b"readonly", b"no_multi", b"noscript", b"movablekeys"} <= read
        assert {b"write", b"denyoom", b"no_multi", b"noscript", b"movablekeys"} <= write


def test_sessions_show_their_queue_pairs(server):
    with server.connect() as connection:
        hello(connection)
        flat = connection.value("KV.SESSIONS")[0]
        assert dict(zip(flat[::2], flat[1::2]))[b"queue-pairs"] == 0


@pytest.mark.parametrize("key, value", [
    ("rdma", "perhaps"), ("rdma-port", "65536"), ("rdma-backlog", "0"),
    ("rdma-queue-pairs-per-session", "1025"), ("rdma-queue-pairs", "0"),
    ("rdma-registration-max", "1mb"), ("rdma-token-lifetime", "3601")])
def test_bounds(servers, key, value):
    assert key in servers.fails("--port", 0, f"--{key}", value)


def test_settings_are_read_at_the_start(client):
    settings = client.config_get("rdma*")
    assert settings["rdma"] == "auto"
    assert settings["rdma-registration-max"] == str(3584 << 20)
    for key in settings:
        with pytest.raises(Exception, match="immutable|start"):
            client.config_set(key, settings[key] or "x")


def test_the_sample_file_has_them():
    sample = (pathlib.Path(__file__).parents[2] / "conf" / "moonpool.conf").read_text()
    assert "# rdma auto" in sample and "# rdma-port 0" in sample
