"""RESP over a real socket: fragments, pipelines, broken frames, silenced replies."""
import random
import socket
import struct

import pytest

from conftest import sanitized, start_reference, wait_for
from resp import Connection, Reply, encode
from test_differential import pattern


def settle(other):
    """A round trip on another connection of the same loop: what was sent before has been read."""
    assert other.call("PING") == Reply("+", b"PONG")


@pytest.fixture
def one_loop(start_server):
    """Everything of 4 KiB and more is a body, received straight into its place."""
    return start_server("--io-threads", "1", "--bulk-threshold", "4kb")


def mixed_pipeline(own=""):
    """Frames of every kind, and the replies to them; `own` is a prefix for the names of keys."""
    small, body = pattern(100), pattern(5000)
    small_key, body_key, a, b, c = (own + name for name in ("small", "body", "a", "b", "c"))
    frames = [
        (b"PING\r\n", b"+PONG\r\n"),
        (b'set "in\\x6cine" \'it\\\'s\'\n', b"+OK\r\n"),
        (b"\r\n", b""),
        (b"*0\r\n", b""),
        (b"*-1\r\n", b""),
        (encode("SET", small_key, small), b"+OK\r\n"),
        (encode("SET", body_key, body), b"+OK\r\n"),
        (encode("MSET", a, body[1:], b, small, c, body[2:]), b"+OK\r\n"),
        (encode("GET", "inline"), b"$4\r\nit's\r\n"),
        (encode("ECHO", body), b"$5000\r\n" + body + b"\r\n"),
        (encode("GET", c), b"$4998\r\n" + body[2:] + b"\r\n"),
        (encode("BOGUS", "x"),
         b"-ERR unknown command 'BOGUS', with args beginning with: 'x' \r\n"),
        (encode("APPEND", body_key, body), b":10000\r\n"),
        (encode("GET", a), b"$4999\r\n" + body[1:] + b"\r\n"),
        (b"STRLEN " + body_key.encode() + b"\r\n", b":10000\r\n"),
    ]
    return b"".join(frame for frame, _ in frames), b"".join(reply for _, reply in frames)


def interesting(stream):
    """The places to split at: all, but of long runs of pattern only their ends and some inside."""
    places = []
    run = 0
    for i in range(1, len(stream)):
        run = run + 1 if stream[i - 1:i] in b"0123456789." else 0
        after = any(byte not in b"0123456789." for byte in stream[i:i + 12])
        if run < 12 or after or i % (997 if sanitized() else 101) == 0:
            places.append(i)
    return places


def receive(connection, count):
    data = bytes(connection.input)
    connection.input.clear()
    while len(data) < count:
        part = connection.socket.recv(1 << 20)
        assert part, f"closed after {data[-100:]}"
        data += part
    return data


def test_split_at_every_byte(one_loop):
    stream, expected = mixed_pipeline()
    with one_loop.connect() as split, one_loop.connect() as other:
        for place in interesting(stream):
            split.send(stream[:place])
            settle(other)
            split.send(stream[place:])
            assert receive(split, len(expected)) == expected, f"split at {place}"


def test_one_byte_at_a_time(one_loop):
    stream, expected = mixed_pipeline()
    with one_loop.connect() as connection:
        for i in range(len(stream)):
            connection.send(stream[i:i + 1])
        assert receive(connection, len(expected)) == expected


def test_random_fragments_on_many_connections(one_loop):
    """Interleaved, so that no connection finds its bytes where another left its own."""
    generator = random.Random(7)
    connections = [one_loop.connect() for _ in range(8)]
    pipelines = {connection: mixed_pipeline(f"{i}:") for i, connection in enumerate(connections)}
    rest = {connection: stream for connection, (stream, _) in pipelines.items()}
    while rest:
        connection = generator.choice(list(rest))
        size = generator.choice([1, 2, 3, 17, 500, 4096, 6000])
        connection.send(rest[connection][:size])
        rest[connection] = rest[connection][size:]
        if not rest[connection]:
            del rest[connection]
    for connection, (_, expected) in pipelines.items():
        assert receive(connection, len(expected)) == expected
        connection.close()


def test_a_broken_frame_after_every_prefix(one_loop):
    """Whatever came before and however it was cut: the replies, the error, the end."""
    stream, expected = mixed_pipeline()
    broken = b"*1\r\n!4\r\nPING\r\n"
    error = b"-ERR Protocol error: expected '$', got '!'\r\n"
    whole = stream + broken + stream
    places = [i for i in interesting(whole) if len(stream) - 30 < i < len(stream) + 30]
    with one_loop.connect() as other:
        for place in places + [len(stream) // 2]:
            with one_loop.connect() as connection:
                connection.send(whole[:place])
                settle(other)
                try:
                    connection.send(whole[place:])
                except (BrokenPipeError, ConnectionResetError):
                    pass  # closed already
                assert connection.closed() == expected + error, f"split at {place}"


BROKEN = {
    "multibulk length not a number": b"*x\r\n",
    "multibulk length with rubbish": b"*1x\r\n$4\r\nPING\r\n",
    "multibulk length empty": b"*\r\n",
    "multibulk length with sign": b"*+1\r\n$4\r\nPING\r\n",
    "multibulk length with zero": b"*01\r\n$4\r\nPING\r\n",
    "multibulk length of 2^31": b"*2147483648\r\n",
    "multibulk length of 2^64": b"*18446744073709551616\r\n",
    "multibulk length without end": b"*" + b"1" * 70_000,
    "negative multibulk": b"*-5\r\n*1\r\n$4\r\nPING\r\nQUIT\r\n",
    "no dollar": b"*1\r\nPING\r\n",
    "colon": b"*1\r\n:4\r\nPING\r\n",
    "newline for a dollar": b"*1\r\n\r\n",
    "bulk length not a number": b"*1\r\n$x\r\n",
    "bulk length negative": b"*1\r\n$-1\r\n",
    "bulk length empty": b"*1\r\n$\r\n",
    "bulk length too large": b"*1\r\n$536870913\r\n",
    "bulk length of 2^63": b"*1\r\n$9223372036854775808\r\n",
    "bulk length without end": b"*1\r\n$" + b"1" * 70_000,
    "bulk length with space": b"*1\r\n$ 4\r\nPING\r\n",
    "second bulk length wrong": b"*2\r\n$3\r\nGET\r\n$-3\r\n",
    "bulk longer than said": b"*1\r\n$4\r\nPINGPING\r\nQUIT\r\n",
    "wrong line end behind a bulk": b"*1\r\n$4\r\nPINGxy*1\r\n$4\r\nQUIT\r\n",
    "inline with open quote": b'SET k "v\r\n',
    "inline with closed quote and rubbish": b'SET k "v"x\r\n',
    "inline with open single quote": b"SET k 'v\r\n",
    "inline too long": b"SET k " + b"v" * 70_000,
    "after good commands": b"PING\r\n" + encode("PING", "x") + b"*1\r\nx\r\n",
    "after a large body": encode("ECHO", pattern(70_000)) + b"*1\r\n$z\r\n",
    "in the middle of a command": b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\nv\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_as_redis(pair, name):
    """The same bytes come back and the connection closes; others notice nothing."""
    data = BROKEN[name]
    with pair.moonpool.connect() as bystander:
        bystander.send(b"*2\r\n$4\r\nECHO\r\n$5\r\nhe")  # in the middle of a command itself
        answers = []
        for connection in pair.connect():
            with connection:
                connection.send(data)
                answers.append(connection.closed())
        assert answers[0] == answers[1]
        bystander.send(b"llo\r\n")
        assert bystander.reply() == Reply("$", b"hello")


def test_strange_but_right_frames_as_redis(pair):
    frames = [
        b"*0\r\n*-1\r\n\r\n   \r\n\n",
        b"PING\n",
        b"  PING  \t hello \r\n",
        b"ECHO \"\\x41\\n\\\\\\\"\"\r\n",
        b"ECHO 'a\\'b\\n'\r\n",
        b"ECHO \"\"\r\n",
        b"ECHO ''\r\n",
        b"ECHO a\"b\"\r\n",
        b"ECHO \"\\xzz\\q\"\r\n",
        b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
        b"*1\r\n$0\r\n\r\n",
        b"*2\r\n$4\r\nECHO\r\n$2\r\n\r\n\r\n",
        b"*2\rX$4\rXECHO\r\n$1\rXa\r\n",
        b"PING\r\n" * 50,
        b"*1\r\n$4\r\nPING\r\n" * 50,
    ]
    for frame in frames:
        answers = []
        for connection in pair.connect():
            with connection:
                connection.send(frame + b"QUIT\r\n")
                answers.append(connection.closed())
        assert answers[0] == answers[1], frame


@pytest.mark.parametrize("first", [b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n",
                                   b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n"])
def test_a_browser_cannot_send_commands(pair, first):
    """Cross-protocol scripting: POST and Host: end the connection, as in Redis."""
    answers = []
    for connection in pair.connect():
        with connection:
            connection.call("DEL", "k")
            connection.send(first)
            connection.socket.shutdown(socket.SHUT_WR)
            answers.append(connection.closed())
    assert answers[0] == answers[1]
    with pair.moonpool.connect() as connection:
        assert connection.value("EXISTS", "k") == 0


def test_more_than_a_million_arguments(pair):
    """redis-server 7.0 takes any number up to 2^31 - 1."""
    count = (1 << 20) + 10
    frame = b"*%d\r\n$4\r\nMGET\r\n" % count + b"$1\r\nk\r\n" * (count - 1)
    for connection in pair.connect():
        with connection:
            connection.send(encode("DEL", "k") + frame)
            connection.reply()
            reply = connection.reply()
            assert reply.kind == "*" and len(reply.value) == count - 1


def test_limits_before_authentication(start_server, tmp_path):
    reference = start_reference(tmp_path, "--requirepass", "secret")
    moonpool = start_server("--requirepass", "secret")
    for data in (b"*11\r\n", b"*1\r\n$16385\r\n", b"*2\r\n$4\r\nAUTH\r\n$16385\r\n",
                 encode("GET", "k") + b"*11\r\n", b"*10\r\n$16384\r\n" + b"x" * 16384 + b"\r\n!\r\n",
                 b"GET k\r\nQUIT\r\n", encode("AUTH", "wrong") + encode("QUIT"),
                 encode("AUTH", "secret") + b"*20\r\n!\r\n",
                 encode("AUTH", "secret") + encode("ECHO", pattern(70_000)) + encode("QUIT")):
        answers = []
        for server in (moonpool, reference):
            with server.connect() as connection:
                connection.send(data)
                answers.append(connection.closed())
        assert answers[0] == answers[1], data[:60]
    reference.stop()


def test_pipeline_of_ten_thousand(pair):
    commands = []
    for i in range(10_000):
        commands.append([("SET", f"key:{i % 100}", f"value:{i}"), ("GET", f"key:{i % 100}"),
                         ("INCR", "counter"), ("PING", str(i)), ("BOGUS",)][i % 5])
    ours, theirs = pair.connect()
    with ours, theirs:
        for connection in (ours, theirs):
            connection.value("FLUSHALL")
        assert ours.pipeline(commands) == theirs.pipeline(commands)


def test_pipeline_of_large_replies_nobody_reads_yet(start_server):
    """The replies wait, by reference, until the client takes them, in their order."""
    server = start_server("--io-threads", "1")
    value = pattern(300_000)
    with server.connect() as connection, server.connect() as other:
        connection.value("SET", "large", value)
        connection.value("SET", "small", "v")
        connection.send((encode("GET", "large") + encode("GET", "small")) * 300)
        settle(other)  # 90 MB are owed to the first; the second is served at once
        before = server.stats()["extent-bytes"]
        assert before < 1_000_000
        for _ in range(300):
            assert connection.reply().value == value
            assert connection.reply().value == b"v"


def test_a_value_overwritten_while_it_is_sent(start_server):
    """The client still gets the version it asked for, whole."""
    server = start_server("--io-threads", "2")
    first, second = b"1" * 20_000_000, b"2" * 20_000_000
    with server.connect() as reader, server.connect() as writer:
        writer.value("SET", "k", first)
        reader.send(encode("GET", "k") + encode("GET", "k"))
        header = receive_some(reader)
        writer.value("SET", "k", second)
        writer.value("DEL", "k")
        writer.value("SET", "other", second)
        reader.input = bytearray(header)
        assert reader.reply().value == first
        assert reader.reply().value in (first, second, None)
    wait_for(lambda: server.stats()["extent-bytes"] == 20_000_768, "the old extents to come back")


def receive_some(connection):
    data = connection.socket.recv(100)
    assert data
    return data


@pytest.mark.parametrize("script", [
    [("CLIENT", "REPLY", "SKIP"), ("SET", "k", "v"), ("GET", "k")],
    [("CLIENT", "REPLY", "SKIP"), ("CLIENT", "REPLY", "SKIP"), ("PING",), ("PING",), ("PING",)],
    [("CLIENT", "REPLY", "SKIP"), ("BOGUS",), ("BOGUS",)],
    [("CLIENT", "REPLY", "SKIP"), ("CLIENT", "REPLY", "ON"), ("PING",)],
    [("CLIENT", "REPLY", "SKIP"), ("CLIENT", "REPLY", "BOGUS"), ("PING",)],
    [("CLIENT", "REPLY", "OFF"), ("PING",), ("GET", "k"), ("BOGUS",), ("CLIENT", "REPLY", "ON"),
     ("PING",)],
    [("CLIENT", "REPLY", "OFF"), ("CLIENT", "REPLY", "SKIP"), ("PING",),
     ("CLIENT", "REPLY", "ON"), ("PING",)],
    [("CLIENT", "REPLY", "OFF"), ("SET", "k", pattern(100_000)), ("GET", "k"), ("MGET", "k", "k"),
     ("CLIENT", "REPLY", "ON"), ("STRLEN", "k")],
    [("SET", "k", pattern(100_000)), ("CLIENT", "REPLY", "SKIP"), ("GET", "k"), ("STRLEN", "k")],
    [("CLIENT", "REPLY", "OFF"), ("CLIENT", "REPLY", "OFF"), ("RESET",), ("PING",)],
    [("CLIENT", "REPLY", "SKIP"), ("RESET",), ("PING",), ("PING",)],
    [("CLIENT", "REPLY", "OFF"), ("HELLO", "3"), ("CLIENT", "REPLY", "ON"), ("GET", "missing")],
])
def test_silenced_replies(pair, script):
    answers = []
    for connection in pair.connect():
        with connection:
            for command in script:
                connection.send(encode(*command))
            connection.send(encode("QUIT"))
            answers.append(connection.closed())
    # And at once.
    with pair.moonpool.connect() as connection:
        connection.send(b"".join(encode(*command) for command in script) + encode("QUIT"))
        answers.append(connection.closed())
    assert answers[0] == answers[1]
    assert answers[2] == answers[1]


@pytest.mark.parametrize("end", [b"QUIT\r\n", b"*1\r\n!\r\n"])
def test_a_silent_connection_ends(server, end):
    """redis-server forgets to close these, because it has nothing to send."""
    with server.connect() as connection:
        connection.send(encode("CLIENT", "REPLY", "OFF") + encode("PING") + end)
        assert b"PONG" not in connection.closed()
    with server.connect() as connection:
        connection.send(encode("CLIENT", "REPLY", "SKIP") + b"QUIT\r\n")
        assert connection.closed() == b""


def test_rubbish_where_a_dollar_belongs_is_found_at_once(server):
    """redis-server waits for the end of the line first."""
    for rubbish in (b"!", b"\x00"):
        with server.connect() as connection:
            connection.send(b"*1\r\n" + rubbish)
            assert connection.closed() == (
                b"-ERR Protocol error: expected '$', got '" + rubbish + b"'\r\n")


def test_requests_behind_a_half_closed_socket(pair):
    """A client that shuts its sending side down still gets every reply."""
    value = pattern(3_000_000)
    answers = []
    for connection in pair.connect():
        with connection:
            connection.value("SET", "k", value)
            connection.send(encode("GET", "k") * 3 + b"PING\r\n")
            connection.socket.shutdown(socket.SHUT_WR)
            answers.append(connection.closed())
    expected = (b"$3000000\r\n" + value + b"\r\n") * 3 + b"+PONG\r\n"
    # Redis stops at the end of the input, whatever it owes; more is fine, rubbish is not.
    for answer in answers:
        assert expected.startswith(answer)


def test_the_end_of_the_input_is_noticed(one_loop):
    """Whether it comes with the last command, just behind it, or alone."""
    with one_loop.connect() as other:
        for pause in (0, 0, 1) * 100:
            connection = Connection(one_loop.port)
            connection.send(encode("PING"))
            if pause:
                assert connection.reply() == Reply("+", b"PONG")
            connection.socket.shutdown(socket.SHUT_WR)
            assert connection.closed() in (b"+PONG\r\n", b"")
        clients = b"connected_clients:1\r\n"
        wait_for(lambda: clients in other.value("INFO", "clients"), "the closed clients to go")


def test_reset_connections(server):
    """Connections torn down with a RST at any moment."""
    for data in (b"", b"PING", encode("PING"), b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\nabc",
                 encode("SET", "k", pattern(100_000)) + encode("GET", "k") * 50):
        connection = Connection(server.port)
        connection.send(data)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                     struct.pack("ii", 1, 0))
        connection.close()
    with server.connect() as connection:
        wait_for(lambda: connection.value("CLIENT", "LIST").count(b"\n") == 1,
                 "the connections to go")
