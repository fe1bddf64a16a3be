"""Large bodies by raw socket: whole, cut at odd places, abandoned half-way."""
import hashlib
import socket
import struct

import pytest

from conftest import Servers, wait_for
from resp import Connection, Reply, encode
from test_differential import pattern

MIB = 1 << 20
SIZES = [MIB, 16 * MIB + 1, 100_000_000, 512 * MIB]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("roomy"))
    # Each of two loops receives large bodies while the other has small commands to do.
    yield servers.start("--io-threads", "2", memory="4gb")
    servers.stop_all()


class Filler:
    """A value of any size that takes no memory: a block, again and again, and its number."""

    def __init__(self, size, tag):
        self.size = size
        self.block = hashlib.sha256(tag.encode()).digest() * 2048 * 8  # 512 KiB

    def pieces(self, size=MIB + 7):
        """The value in pieces of `size` bytes."""
        whole = self.block * (size // len(self.block) + 2)
        position = 0
        while position < self.size:
            length = min(size, self.size - position)
            start = position % len(self.block)
            yield memoryview(whole)[start:start + length]
            position += length


def send_set(connection, key, filler, piece=MIB + 7):
    connection.send(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(key), key, filler.size))
    for part in filler.pieces(piece):
        connection.send(part)
    connection.send(b"\r\n")


def receive_bulk(connection, filler):
    """Reads one bulk string and compares it with what it must be as it comes in."""
    head = b""
    while not head.endswith(b"\r\n"):
        head += connection.socket.recv(1)
    assert head == b"$%d\r\n" % filler.size
    buffer = bytearray(MIB)
    for part in filler.pieces(len(buffer)):
        view = memoryview(buffer)[:len(part)]
        have = 0
        while have < len(view):
            count = connection.socket.recv_into(view[have:])
            assert count, "closed in the middle of a value"
            have += count
        assert view == part
    assert connection.socket.recv(2, socket.MSG_WAITALL) == b"\r\n"


@pytest.mark.parametrize("size", SIZES)
def test_set_and_get(roomy, size):
    first, second = Filler(size, "first"), Filler(size, "second")
    with roomy.connect() as connection, roomy.connect() as other:
        send_set(connection, b"k", first)
        assert connection.reply() == Reply("+", b"OK")
        assert other.value("STRLEN", "k") == size
        connection.send(encode("GET", "k"))
        receive_bulk(connection, first)
        # Overwritten; and small ones are served meanwhile.
        send_set(connection, b"k", second, 3 * MIB + 1)
        assert other.value("PING") == b"PONG"
        assert connection.reply() == Reply("+", b"OK")
        connection.send(encode("GET", "k"))
        receive_bulk(connection, second)
        middle = size // 2
        expected = b"".join(second.pieces())[middle:middle + 5000] if size < 32 * MIB else None
        part = connection.value("GETRANGE", "k", middle, middle + 4999)
        assert len(part) == 5000 and (expected is None or part == expected)
        assert connection.value("DEL", "k") == 1
    wait_for(lambda: roomy.stats()["extent-bytes"] == 0, "its extent to come back")


@pytest.mark.parametrize("cuts", [[1], [MIB - 1], [MIB, 1], [4095, 1, 65537], [524288, 2],
                                  [511, 513]])
def test_cut_at_odd_places(roomy, cuts):
    value = pattern(3 * MIB + 11)
    stream = encode("SET", "cut", value) + encode("STRLEN", "cut")
    if cuts == [1]:
        # Byte by byte where it matters: up to the body, and from shortly before its end on.
        head, tail = 100, len(stream) - 120
        parts = [stream[i:i + 1] for i in range(head)] + [stream[head:tail]]
        parts += [stream[i:i + 1] for i in range(tail, len(stream))]
    else:
        parts, position, i = [], 0, 0
        while position < len(stream):
            parts.append(stream[position:position + cuts[i % len(cuts)]])
            position += cuts[i % len(cuts)]
            i += 1
    with roomy.connect() as connection:
        for part in parts:
            connection.send(part)
        assert connection.reply() == Reply("+", b"OK")
        assert connection.reply() == Reply(":", len(value))
        assert connection.value("GET", "cut") == value
        connection.value("DEL", "cut")


def test_several_bodies_in_one_command(roomy):
    values = [pattern(65536), pattern(5), pattern(2 * MIB + 3)[3:], pattern(65535), pattern(70000)]
    arguments = sum(([f"m:{i}", value] for i, value in enumerate(values)), [])
    names = arguments[::2]
    with roomy.connect() as connection:
        assert connection.value("MSET", *arguments) == b"OK"
        assert connection.value("MGET", *names) == values
        assert connection.value("MSETNX", *arguments) == 0
        # The wrong number of arguments is found when the bodies are there already.
        assert connection.call("MSET", *arguments, "more").kind == "-"
        assert connection.value("DEL", *names) == len(names)
        # A body where none is expected: as a key, as an option, as a command.
        body = pattern(MIB)
        assert connection.value("SET", body, body) == b"OK"
        assert connection.value("GET", body) == body
        assert connection.value("EXISTS", body, body) == 2
        assert connection.value("KEYS", "*") == [body]
        assert connection.call("SET", "k", "v", body).kind == "-"
        assert connection.call(body, "v").kind == "-"
        assert connection.value("DEL", body) == 1
    wait_for(lambda: roomy.stats()["extent-bytes"] == 0, "the extents to come back")


ABANDONED = {
    "in the header of the body": (encode("SET", "k", pattern(MIB)), 30),
    "at the first byte": (encode("SET", "k", pattern(MIB)), 38),
    "in the middle": (encode("SET", "k", pattern(16 * MIB)), 5 * MIB),
    "before the last line end": (encode("SET", "k", pattern(MIB)), -2),
    "in the last line end": (encode("SET", "k", pattern(MIB)), -1),
    "in the second body": (encode("MSET", "k", pattern(MIB), "l", pattern(2 * MIB)), 2 * MIB),
    "in an argument that is not stored": (encode("APPEND", "k", pattern(4 * MIB)), 2 * MIB),
    "in an unknown command": (encode("BOGUS", pattern(4 * MIB)), 2 * MIB),
}


@pytest.mark.parametrize("name", ABANDONED)
@pytest.mark.parametrize("how", ["close", "reset", "kill", "broken frame"])
def test_abandoned_in_the_middle(roomy, name, how):
    """Nothing becomes visible, nothing leaks."""
    stream, count = ABANDONED[name]
    with roomy.connect() as other:
        other.value("SET", "k", "old")
        before = roomy.stats()["extent-bytes"]
        connection = roomy.connect()
        connection.send(encode("CLIENT", "ID"))
        number = connection.reply().value
        connection.send(stream[:count])
        if how == "kill":
            assert other.value("CLIENT", "KILL", "ID", number) == 1
            connection.closed()
        elif how == "broken frame":
            connection.socket.shutdown(socket.SHUT_WR)
            connection.closed()
        elif how == "reset":
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                         struct.pack("ii", 1, 0))
        connection.close()
        wait_for(lambda: b"id=%d " % number not in other.value("CLIENT", "LIST"),
                 "the connection to go")
        wait_for(lambda: roomy.stats()["extent-bytes"] == before, "the extents to come back")
        assert other.value("GET", "k") == b"old"
        assert other.value("EXISTS", "l") == 0


def test_many_clients_abandon_bodies(roomy):
    before = roomy.stats()["extent-bytes"]
    connections = [roomy.connect() for _ in range(40)]
    for i, connection in enumerate(connections):
        connection.send(encode("SET", f"abandoned:{i}", pattern(2 * MIB))[:MIB + i])
    wait_for(lambda: roomy.stats()["extent-bytes"] >= before + 40 * 2 * MIB, "the bodies to begin")
    for connection in connections:
        connection.close()
    wait_for(lambda: roomy.stats()["extent-bytes"] == before, "the extents to come back")


def test_a_body_that_fits_nowhere(start_server):
    """-OOM when the command has ended; the bytes are swallowed, the connection lives."""
    server = start_server("--maxmemory-policy", "noeviction", memory="64mb")
    with server.connect() as connection:
        connection.value("SET", "kept", pattern(MIB))
        for size in (100 * MIB, 65 * MIB):
            send_set(connection, b"k", Filler(size, "x"))
            reply = connection.reply()
            assert reply.kind == "-" and reply.value.startswith(b"OOM "), reply
        assert connection.value("EXISTS", "k") == 0
        assert connection.value("GET", "kept") == pattern(MIB)
        # In a batch one such value fails the whole command, and nothing is stored.
        reply = connection.call("MSET", "a", pattern(MIB), "b", b"x" * (70 * MIB))
        assert reply.value.startswith(b"OOM ")
        assert connection.value("EXISTS", "a", "b") == 0
        assert connection.value("SETRANGE", "kept", 0, "new") == MIB
    assert server.stats()["extent-bytes"] == MIB


def test_longest_argument(server):
    with server.connect() as connection:
        connection.value("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        # A connection that is open already hears of it with the next tick of its loop.
        def refused():
            with server.connect() as fresh:
                fresh.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577\r\n")
                return fresh.closed() == b"-ERR Protocol error: invalid bulk length\r\n"
        wait_for(refused, "the new limit to hold")
        assert connection.value("SET", "k", pattern(MIB)) == b"OK"
        for command in (("APPEND", "k", "x"), ("SETRANGE", "k", MIB, "x")):
            assert connection.call(*command) == Reply(
                "-", b"ERR string exceeds maximum allowed size (proto-max-bulk-len)")
        assert connection.value("SETRANGE", "k", MIB - 1, "x") == MIB


def test_headers_beyond_two_gigabytes(start_server):
    """With proto-max-bulk-len raised; the bytes themselves are not sent here."""
    server = start_server("--io-threads", "1")
    with server.connect() as other:
        other.value("CONFIG", "SET", "proto-max-bulk-len", "5gb")
        for size in (2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32 + 5):
            for frame in (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % size,
                          b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % size):
                with server.connect() as connection:
                    connection.send(frame + b"some bytes")
                    wait_for(lambda: other.value("CLIENT", "LIST").count(b"\n") == 2,
                             "the connection before to go")
                    # Neither an error nor the end: the server waits for the rest.
                    connection.socket.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        connection.socket.recv(1)
        with server.connect() as connection:
            connection.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (5 * 2 ** 30 + 1))
            assert connection.closed() == b"-ERR Protocol error: invalid bulk length\r\n"


def test_small_commands_while_large_bodies_come_and_go(roomy):
    """One loop's other connections get their turns; checked by order, not by time."""
    filler = Filler(64 * MIB, "busy")
    large = [roomy.connect() for _ in range(2)]
    small = [roomy.connect() for _ in range(4)]
    for i, connection in enumerate(large):
        header = b"*3\r\n$3\r\nSET\r\n$1\r\n%d\r\n$%d\r\n" % (i, filler.size)
        connection.send(header)
    for parts in zip(*(filler.pieces() for _ in large)):
        for connection, part in zip(large, parts):
            connection.send(part)
        for connection in small:
            assert connection.value("PING") == b"PONG"
    for i, connection in enumerate(large):
        connection.send(b"\r\n")
        assert connection.reply() == Reply("+", b"OK")
        connection.send(encode("GET", str(i)))
    # The replies are on their way, unread; the others still get answers.
    for connection in small:
        assert connection.value("SET", "s", "v") == b"OK"
        assert connection.value("GET", "s") == b"v"
    for connection in large:
        receive_bulk(connection, filler)
    with roomy.connect() as connection:
        connection.value("FLUSHALL")
    for connection in large + small:
        connection.close()
    wait_for(lambda: roomy.stats()["extent-bytes"] == 0, "the extents to come back")


def test_connect_and_go(roomy):
    """Connections that never say anything, or vanish at once, cost nothing."""
    for _ in range(200):
        Connection(roomy.port).close()
    with roomy.connect() as connection:
        wait_for(lambda: connection.value("CLIENT", "LIST").count(b"\n") == 1,
                 "the connections to go")
