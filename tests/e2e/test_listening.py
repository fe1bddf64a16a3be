"""Where the server listens and whom it lets in."""
import os
import socket
import stat
import subprocess

import pytest

from conftest import DEADLINE_S, free_port, start_reference, wait_for
from resp import Connection, Reply, encode


def address_of_this_host():
    """An address of this machine that is not its loopback; None when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            address = s.getsockname()[0]
        except OSError:
            return None
    return None if address.startswith("127.") else address


@pytest.fixture
def outside():
    """A way to reach the server as if from another host: an address that is no loopback."""
    address = address_of_this_host()
    if address is not None:
        yield address
        return
    # No network at all: give the loopback device such an address for a while.
    address = "198.51.100.77"
    added = subprocess.run(["ip", "address", "add", address + "/32", "dev", "lo"],
                           capture_output=True, text=True)
    if added.returncode != 0:
        pytest.skip(f"no address but the loopback's, and none can be added: {added.stderr}")
    yield address
    subprocess.run(["ip", "address", "del", address + "/32", "dev", "lo"], check=True)


def my_line(connection):
    fields = connection.value("CLIENT", "INFO").decode().split()
    return dict(field.split("=", 1) for field in fields)


def test_both_loopbacks_by_default(server):
    with Connection(("127.0.0.1", server.port)) as connection:
        line = my_line(connection)
        peer = connection.socket.getsockname()
        assert line["addr"] == f"127.0.0.1:{peer[1]}"
        assert line["laddr"] == f"127.0.0.1:{server.port}"
    with Connection(("::1", server.port)) as connection:
        line = my_line(connection)
        assert line["addr"] == f"[::1]:{connection.socket.getsockname()[1]}"
        assert line["laddr"] == f"[::1]:{server.port}"


def test_bind(start_server, servers, outside):
    only_v6 = start_server("--bind", "::1")
    with Connection(("::1", only_v6.port)) as connection:
        assert connection.value("PING") == b"PONG"
    with pytest.raises(ConnectionRefusedError):
        Connection(("127.0.0.1", only_v6.port))
    # Several words, as one argument or as many; a missing address with '-' does no harm.
    for words in (["127.0.0.1 ::1 -203.0.113.9"], ["127.0.0.1", "-203.0.113.9", "::1"]):
        several = start_server("--bind", *words)
        for host in ("127.0.0.1", "::1"):
            with Connection((host, several.port)) as connection:
                assert connection.value("PING") == b"PONG"
        with pytest.raises(ConnectionRefusedError):
            Connection((outside, several.port))
        several.stop()
    everywhere = start_server("--bind", "* ::*", "--protected-mode", "no")
    for host in ("127.0.0.1", "::1", outside):
        with Connection((host, everywhere.port)) as connection:
            assert connection.value("PING") == b"PONG"
    complaint = servers.fails("--bind", "203.0.113.9", "--port", free_port())
    assert "203.0.113.9" in complaint
    assert "nothing to listen on" in servers.fails("--bind", "-203.0.113.9", "--port",
                                                   free_port())
    assert "nothing to listen on" in servers.fails("--port", "0")


def test_port_in_use(server, servers):
    complaint = servers.fails("--port", server.port)
    assert "Address already in use" in complaint and str(server.port) in complaint


def test_tcp_backlog(start_server):
    """More clients connect at once than the server accepts between two looks."""
    server = start_server("--tcp-backlog", "128")
    backlog = subprocess.run(["ss", "-ltnH", f"sport = :{server.port}"], capture_output=True,
                             text=True)
    if backlog.returncode == 0 and backlog.stdout:
        assert {line.split()[2] for line in backlog.stdout.splitlines()} == {"128"}
    connections = [Connection(server.port) for _ in range(100)]
    for connection in connections:
        connection.send(encode("PING"))
    for connection in connections:
        assert connection.reply() == Reply("+", b"PONG")
        connection.close()


# --- Unix sockets ------------------------------------------------------------------------------

def test_unix_socket(start_server, tmp_path):
    path = tmp_path / "moonpool.sock"
    server = start_server("--unixsocket", path, "--unixsocketperm", "750")
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    with Connection(path) as connection:
        connection.value("SET", "k", "v" * 100_000)
        assert connection.value("GET", "k") == b"v" * 100_000
        line = my_line(connection)
        assert line["addr"] == f"{path}:0" and "U" in line["flags"]
    with Connection(server.port) as connection:
        assert connection.value("STRLEN", "k") == 100_000
    assert server.stop() == 0
    assert not path.exists()


def test_unix_socket_alone(start_server, tmp_path):
    path = tmp_path / "alone.sock"
    server = start_server("--unixsocket", path, port=0)
    with Connection(path) as connection:
        assert connection.value("PING") == b"PONG"
        assert b"tcp_port:0" in connection.value("INFO", "server")
    assert server.stop() == 0


def test_unix_socket_of_a_dead_server_is_taken_over(start_server, tmp_path):
    path = tmp_path / "moonpool.sock"
    dead = start_server("--unixsocket", path)
    dead.kill()
    assert path.exists()
    start_server("--unixsocket", path)
    with Connection(path) as connection:
        assert connection.value("PING") == b"PONG"


def test_unix_socket_of_a_living_server_is_left_alone(start_server, servers, tmp_path):
    path = tmp_path / "moonpool.sock"
    start_server("--unixsocket", path)
    complaint = servers.fails("--unixsocket", path, "--port", free_port())
    assert "another server listens" in complaint and str(path) in complaint
    with Connection(path) as connection:
        assert connection.value("PING") == b"PONG"
    # Nor does a server that fails to start for another reason take it away.
    assert path.exists()


def test_unix_socket_path_of_another_file(servers, tmp_path):
    """What is not a socket is not removed."""
    path = tmp_path / "precious"
    path.write_text("data")
    assert str(path) in servers.fails("--unixsocket", path, "--port", free_port())
    assert path.read_text() == "data"
    assert str(tmp_path) in servers.fails("--unixsocket", tmp_path, "--port", free_port())
    assert "longer than" in servers.fails("--unixsocket", tmp_path / ("x" * 120), "--port",
                                          free_port())
    missing = tmp_path / "missing" / "socket"
    assert "No such file" in servers.fails("--unixsocket", missing, "--port", free_port())


def test_attach_socket_path_of_another_file(servers, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    assert str(path) in servers.fails("--attach-socket", path, "--port", free_port())
    assert path.read_text() == "data"


def test_attach_socket_of_a_dead_server_is_taken_over(start_server, tmp_path):
    path = tmp_path / "attach.sock"
    dead = start_server("--attach-socket", path)
    dead.kill()
    assert path.exists()
    server = start_server("--attach-socket", path)
    with server.connect() as connection:
        assert connection.call("KV.HELLO", "1").kind == "*"
    assert server.stop() == 0
    assert not path.exists()


# --- limits ------------------------------------------------------------------------------------

def test_maxclients(pair, start_server, tmp_path):
    reference = start_reference(tmp_path, "--maxclients", "3")
    moonpool = start_server("--maxclients", "3")
    answers = []
    for server in (moonpool, reference):
        connections = [server.connect() for _ in range(3)]
        for connection in connections:
            assert connection.value("PING") == b"PONG"
        refused = server.connect()
        answers.append(refused.closed())
        # With one less there is room again.
        connections[0].send(encode("QUIT"))
        connections[0].closed()

        def welcome():
            with server.connect() as connection:
                try:
                    return connection.call("PING") == Reply("+", b"PONG")
                except Exception:  # pylint: disable=broad-except
                    return False
        wait_for(welcome, "room for another client")
        assert int(connections[1].value("INFO", "stats").split(b"rejected_connections:")[1]
                   .split()[0]) >= 1
        for connection in connections:
            connection.close()
    assert answers[0] == answers[1] == b"-ERR max number of clients reached\r\n"
    reference.stop()


def test_maxclients_at_run_time(server):
    connections = [server.connect() for _ in range(5)]
    assert connections[0].value("CONFIG", "SET", "maxclients", "5") == b"OK"
    for connection in connections:
        assert connection.value("PING") == b"PONG"
    with server.connect() as refused:
        assert refused.closed() == b"-ERR max number of clients reached\r\n"
    # Those that are in stay in, however low the limit.
    assert connections[0].value("CONFIG", "SET", "maxclients", "1") == b"OK"
    for connection in connections:
        assert connection.value("PING") == b"PONG"
    assert connections[0].value("CONFIG", "SET", "maxclients", "100") == b"OK"
    with server.connect() as connection:
        assert connection.value("PING") == b"PONG"


IDLE_S = 5  # long enough for this process to get its turn on a busy machine


def test_timeout_closes_idle_clients(start_server):
    server = start_server("--timeout", IDLE_S, "--hz", "100")
    idle, half, busy = server.connect(), server.connect(), server.connect()
    assert idle.value("PING") == b"PONG"
    half.send(b"*2\r\n$4\r\nECHO\r\n$10\r\nabc")  # never says the rest
    # One that talks is never closed; the two that do not are.
    def only_busy_left():
        return busy.value("CLIENT", "LIST").count(b"\n") == 1
    wait_for(only_busy_left, "the idle clients to be closed")
    assert idle.closed() == b"" and half.closed() == b""
    assert busy.value("CONFIG", "SET", "timeout", "0") == b"OK"
    assert int(server.info("stats")["client_timeout_disconnections"]) == 2


def test_a_client_that_receives_is_not_idle(start_server):
    """The timeout is for clients that are owed nothing."""
    server = start_server("--timeout", IDLE_S, "--hz", "100")
    value = b"x" * 30_000_000
    with server.connect() as slow, server.connect() as other:
        slow.value("SET", "k", value)
        slow.send(encode("GET", "k"))
        idle = server.connect()
        closed = []

        def idle_is_closed():
            other.value("PING")
            if b"id=3 " in other.value("CLIENT", "LIST"):
                return False
            closed.append(idle.closed())
            return True
        wait_for(idle_is_closed, "the idle client to be closed")
        assert slow.reply().value == value
        assert closed == [b""]


def test_a_reader_that_does_not_read_is_closed(start_server):
    """client-output-hard-limit counts values that are pinned for the client, too."""
    server = start_server("--client-output-hard-limit", "20mb", memory="256mb")
    with server.connect() as greedy, server.connect() as other:
        other.value("SET", "k", b"x" * 10_000_000)
        greedy.send(encode("GET", "k") * 30)
        wait_for(lambda: other.value("CLIENT", "LIST").count(b"\n") == 1, "it to be closed")
        assert other.value("STRLEN", "k") == 10_000_000
        assert server.info("stats")["client_output_buffer_limit_disconnections"] == "1"
        # One that reads may have any amount.
        with server.connect() as reader:
            for _ in range(10):
                assert len(reader.value("GET", "k")) == 10_000_000


def test_a_reader_that_is_slow_for_too_long_is_closed(start_server):
    server = start_server("--client-output-soft-limit", "5mb", "--client-output-soft-seconds", "1")
    with server.connect() as greedy, server.connect() as other:
        other.value("SET", "k", b"x" * 20_000_000)
        greedy.send(encode("GET", "k"))
        wait_for(lambda: other.value("CLIENT", "LIST").count(b"\n") == 1, "it to be closed")


def test_query_buffer_limit(start_server):
    server = start_server("--client-query-buffer-limit", "1mb")
    with server.connect() as connection:
        # Many small arguments of one command that never ends.
        try:
            connection.send(b"*1000000\r\n" + b"$10\r\n0123456789\r\n" * 200_000)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert connection.closed() == b""
    with server.connect() as connection:
        assert connection.value("SET", "k", b"x" * 5_000_000) == b"OK"  # a body is no query buffer


# --- passwords -----------------------------------------------------------------------------------

PASSWORD_SCRIPT = [
    ("PING",), ("GET", "k"), ("SET", "k", "v"), ("BOGUS",), ("GET",), ("HELLO",), ("HELLO", "3"),
    ("HELLO", "9"), ("COMMAND", "COUNT"), ("INFO",), ("CLIENT", "ID"), ("SELECT", "0"),
    ("CONFIG", "GET", "requirepass"), ("FLUSHALL",), ("DEL", "k"), ("SHUTDOWN",),
    ("AUTH",), ("AUTH", "wrong"), ("AUTH", "default", "wrong"), ("AUTH", "nobody", "secret"),
    ("AUTH", ""), ("AUTH", "default", ""), ("AUTH", "secre"), ("AUTH", "secrets"),
    ("AUTH", "a", "b", "c"), ("HELLO", "3", "AUTH", "default", "wrong"),
    ("HELLO", "2", "AUTH", "nobody", "secret"), ("HELLO", "2", "SETNAME", "x"),
    ("RESET",), ("PING",),
    ("AUTH", "secret"), ("PING",), ("SET", "k", "v"), ("AUTH", "wrong"), ("GET", "k"),
    ("RESET",), ("GET", "k"), ("AUTH", "default", "secret"), ("GET", "k"),
    ("RESET",), ("QUIT",),
]


def test_password(start_server, tmp_path):
    """As redis-server with the same password."""
    reference = start_reference(tmp_path, "--requirepass", "secret")
    moonpool = start_server("--requirepass", "secret")
    replies = []
    for server in (moonpool, reference):
        with server.connect() as connection:
            replies.append([connection.call(*command) for command in PASSWORD_SCRIPT])
    for command, ours, theirs in zip(PASSWORD_SCRIPT, *replies):
        assert ours == theirs, command
    # HELLO with the right one; the reply is a map.
    for server in (moonpool, reference):
        with server.connect() as connection:
            reply = connection.call("HELLO", "3", "AUTH", "default", "secret", "SETNAME", "me")
            assert reply.kind == "%"
            assert connection.value("CLIENT", "GETNAME") == b"me"
            assert connection.call("GET", "missing") == Reply("_", None)
    reference.stop()


def test_password_at_run_time(server):
    first = server.connect()
    assert first.value("CONFIG", "SET", "requirepass", "new pass\"word") == b"OK"
    assert first.value("PING") == b"PONG"  # who was in stays in
    second = server.connect()
    assert second.call("PING") == Reply("-", b"NOAUTH Authentication required.")
    assert second.value("AUTH", "new pass\"word") == b"OK"
    assert second.value("CONFIG", "GET", "requirepass") == [b"requirepass", b"new pass\"word"]
    assert second.value("CONFIG", "SET", "requirepass", "") == b"OK"
    third = server.connect()
    assert third.value("PING") == b"PONG"
    assert third.call("AUTH", "x").value.startswith(b"ERR AUTH <password> called without any")
    assert third.value("AUTH", "default", "anything") == b"OK"


def test_password_with_tools(start_server):
    server = start_server("--requirepass", "secret")
    for arguments, expected in ([["-a", "secret", "--no-auth-warning"], "PONG\n"],
                                [["--user", "default", "--pass", "secret", "--no-auth-warning"],
                                 "PONG\n"],
                                [[], "NOAUTH Authentication required.\n\n"]):
        ended = subprocess.run(["redis-cli", "-p", str(server.port), *arguments, "ping"],
                               capture_output=True, text=True, timeout=DEADLINE_S)
        assert ended.stdout == expected, ended
    client = server.client(password="secret")
    assert client.ping() is True


# --- protected mode ------------------------------------------------------------------------------

def test_protected_mode(start_server, outside):
    server = start_server("--bind", "* ::*")
    with Connection((outside, server.port)) as stranger:
        said = stranger.closed()
        assert said.startswith(b"-DENIED ") and b"protected mode" in said
        assert said.endswith(b"\r\n") and said.count(b"\r\n") == 1
    for host in ("127.0.0.1", "::1"):
        with Connection((host, server.port)) as friend:
            assert friend.value("PING") == b"PONG"
    # A password opens it, and so does switching it off.
    with Connection(server.port) as friend:
        friend.value("CONFIG", "SET", "requirepass", "secret")
        with Connection((outside, server.port)) as stranger:
            assert stranger.call("PING").value.startswith(b"NOAUTH")
            assert stranger.value("AUTH", "secret") == b"OK"
        friend.value("CONFIG", "SET", "requirepass", "")
        friend.value("CONFIG", "SET", "protected-mode", "no")
        with Connection((outside, server.port)) as stranger:
            assert stranger.value("PING") == b"PONG"
        friend.value("CONFIG", "SET", "protected-mode", "yes")
        with Connection((outside, server.port)) as stranger:
            assert stranger.closed().startswith(b"-DENIED ")
    assert int(server.info("stats")["rejected_connections"]) == 2


def test_unix_sockets_are_not_strangers(start_server, tmp_path):
    path = tmp_path / "socket"
    start_server("--bind", "*", "--unixsocket", path)
    with Connection(path) as connection:
        assert connection.value("PING") == b"PONG"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_client_in_another_network_namespace(start_server, tmp_path):
    """A Unix socket reaches across; such a client is another host to shared memory."""
    path = tmp_path / "socket"
    server = start_server("--unixsocket", path)
    with server.connect() as connection:
        home = dict(zip(*[iter(connection.value("KV.HELLO", "1"))] * 2))[b"host"]
        # A client that names another host is not offered shared memory.
        transports = dict(zip(*[iter(connection.value("KV.HELLO", "1", "HOST", "elsewhere"))] * 2))
        assert [t[1] for t in transports[b"transports"]] == [b"tcp"]
        same = dict(zip(*[iter(connection.value("KV.HELLO", "1", "HOST", home))] * 2))
        assert [t[1] for t in same[b"transports"]] == [b"shm", b"tcp"]
    ended = subprocess.run(["unshare", "--net", "redis-cli", "-s", str(path), "ping"],
                           capture_output=True, text=True, timeout=DEADLINE_S)
    if ended.returncode != 0 and "Operation not permitted" in ended.stderr:
        pytest.skip("no new network namespaces here")
    assert ended.stdout == "PONG\n", ended
