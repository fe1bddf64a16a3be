"""Starting, stopping, and being stopped."""
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from conftest import DEADLINE_S, SERVER, Server, free_port, wait_for
from resp import Closed, Connection, Reply, encode
from test_differential import pattern

LARGE = 64 << 20


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, "SHUTDOWN", "SHUTDOWN NOSAVE",
                                  "SHUTDOWN NOW FORCE"])
def test_a_reader_gets_all_of_it(start_server, stop):
    """What was asked for before the end is delivered, and the exit status is 0."""
    server = start_server("--io-threads", "1", "--shutdown-timeout", "3600")
    value = pattern(1 << 20) * (LARGE >> 20)
    readers = [server.connect() for _ in range(3)]
    readers[0].value("SET", "k", value)
    for reader in readers:
        reader.send(encode("GET", "k") + encode("ECHO", "last"))
    # All have begun to receive; nobody has taken much.
    heads = [reader.socket.recv(1000) for reader in readers]
    idle, asking = server.connect(), server.connect()
    if isinstance(stop, str):
        # Like redis-server, no reply but the end.
        asking.send(encode(*stop.split()))
        assert asking.closed() == b""
    else:
        server.process.send_signal(stop)
    assert idle.closed() == b""
    wait_for(lambda: refused(server.port), "the server to stop listening")
    for reader, head in zip(readers, heads):
        reader.input += head
        assert reader.reply().value == value
        assert reader.reply().value == b"last"
        assert reader.closed() == b""
    assert server.wait() == 0
    assert "bye" in server.text()


def test_all_loops_stop_at_once(start_server):
    """A loop with a slow reader does not keep the other loops working."""
    server = start_server("--io-threads", "2", "--shutdown-timeout", "3600")
    value = pattern(1 << 20) * (LARGE >> 20)
    # Connections take turns: the readers are on two loops, and so are the idle ones.
    readers = [server.connect() for _ in range(2)]
    idle = [server.connect() for _ in range(2)]
    for connection in readers + idle:
        assert connection.value("PING") == b"PONG"
    readers[0].value("SET", "k", value)
    for reader in readers:
        reader.send(encode("GET", "k"))
    heads = [reader.socket.recv(1000) for reader in readers]
    server.process.send_signal(signal.SIGTERM)
    for connection in idle:
        assert connection.closed() == b""
    for reader, head in zip(readers, heads):
        reader.input += head
        assert reader.reply().value == value
    assert server.wait() == 0


def refused(port):
    try:
        Connection(port).close()
        return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_stop_under_load(start_server, threads):
    """Replies that were sent are whole, whatever moment the end comes at."""
    server = start_server("--io-threads", threads)
    failures, rounds = [], []

    def work(number):
        done = 0
        try:
            with server.connect() as connection:
                while True:
                    value = pattern(70_000 + number)
                    replies = connection.pipeline([("SET", f"k{number}", value),
                                                   ("GET", f"k{number}"), ("INCR", "n")])
                    assert replies[0] == Reply("+", b"OK") and replies[1].value == value
                    done += 1
                    rounds.append(number)
        except (Closed, ConnectionError, BrokenPipeError):
            pass  # the end, wherever it came
        except Exception as failure:  # pylint: disable=broad-except
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(set(rounds)) == 6, "every client to be busy")
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_a_reader_that_never_reads_does_not_hold_the_server_up(start_server):
    server = start_server("--shutdown-timeout", "1")
    with server.connect() as connection:
        connection.value("SET", "k", pattern(LARGE))
        connection.send(encode("GET", "k"))
        assert connection.socket.recv(10)
        assert server.stop() == 0


def test_half_a_command_does_not_hold_the_server_up(start_server):
    server = start_server("--shutdown-timeout", "3600")
    with server.connect() as small, server.connect() as large:
        small.send(b"*2\r\n$4\r\nECHO\r\n$10\r\nabc")
        large.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10000000\r\nabc")
        assert server.stop() == 0


def test_no_reply_to_shutdown_that_is_refused(server):
    with server.connect() as connection:
        assert connection.call("SHUTDOWN", "BOGUS") == Reply("-", b"ERR syntax error")
        assert connection.call("SHUTDOWN", "ABORT") == Reply("-", b"ERR No shutdown in progress.")
        assert connection.value("PING") == b"PONG"


@pytest.mark.parametrize("round_", range(3))
def test_same_port_right_after_kill(servers, round_):
    """With connections still open, and in every state TCP has."""
    server = servers.start()
    connections = [server.connect() for _ in range(20)]
    for i, connection in enumerate(connections):
        connection.send(encode("SET", str(i), pattern(i * 50_000)))
    connections.pop().close()
    server.kill()
    again = servers.start(port=server.port)
    with again.connect() as connection:
        assert connection.value("DBSIZE") == 0
        assert connection.value("PING") == b"PONG"
    for connection in connections:
        connection.close()


def test_same_port_right_after_a_clean_stop(servers):
    server = servers.start()
    connections = [server.connect() for _ in range(20)]
    for connection in connections:
        assert connection.value("PING") == b"PONG"
    assert server.stop() == 0  # the server closes first: its side waits
    again = servers.start(port=server.port)
    with again.connect() as connection:
        assert connection.value("PING") == b"PONG"


def test_nothing_is_left_behind(start_server, tmp_path):
    """No shared memory, no socket file, no pid file."""
    paths = [tmp_path / name for name in ("unix", "attach", "pid")]
    before = set(os.listdir("/dev/shm"))
    server = start_server("--unixsocket", paths[0], "--attach-socket", paths[1],
                          "--pidfile", paths[2])
    with server.connect() as connection:
        connection.value("SET", "k", pattern(1_000_000))
    wait_for(paths[2].exists, "the pid file")
    assert int(paths[2].read_text()) == server.process.pid
    assert server.stop() == 0
    assert not any(path.exists() for path in paths)
    # What other processes have there comes and goes meanwhile.
    wait_for(lambda: set(os.listdir("/dev/shm")) <= before, "what is new in /dev/shm to go")


def test_daemonize(tmp_path):
    port = free_port()
    ended = subprocess.run([SERVER, "--port", str(port), "--maxmemory", "64mb", "--daemonize",
                            "yes", "--pidfile", "moonpool.pid", "--logfile", "moonpool.log",
                            "--dir", tmp_path], timeout=DEADLINE_S, capture_output=True, cwd="/")
    assert ended.returncode == 0 and ended.stdout == b"", ended
    pid = int((tmp_path / "moonpool.pid").read_text())
    with Connection(port) as connection:
        assert f"process_id:{pid}".encode() in connection.value("INFO", "server")
        connection.send(encode("SHUTDOWN"))
        assert connection.closed() == b""
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the daemon to end")
    assert not (tmp_path / "moonpool.pid").exists()
    assert "bye" in (tmp_path / "moonpool.log").read_text()


def test_daemonize_tells_when_it_cannot_start(start_server, tmp_path):
    port = start_server().port
    ended = subprocess.run([SERVER, "--port", str(port), "--maxmemory", "64mb", "--daemonize",
                            "yes", "--dir", tmp_path], timeout=DEADLINE_S, capture_output=True)
    assert ended.returncode == 1
    assert b"Address already in use" in ended.stderr


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_io_threads(start_server, threads):
    """So many loops run, and connections are spread over them."""
    server = start_server("--io-threads", threads)
    names = []
    for task in os.listdir(f"/proc/{server.process.pid}/task"):
        try:
            with open(f"/proc/{server.process.pid}/task/{task}/comm") as file:
                names.append(file.read().strip())
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread that has ended
    assert sorted(name for name in names if name.startswith("loop-")) == [
        f"loop-{i}" for i in range(threads)]
    assert server.info("server")["io_threads"] == str(threads)
    connections = [server.connect() for _ in range(2 * threads)]
    for i, connection in enumerate(connections):
        assert connection.value("SET", f"k{i}", pattern(i * 40_000)) == b"OK"
    for connection in connections:
        assert connection.value("MGET", *(f"k{i}" for i in range(len(connections)))) == [
            pattern(i * 40_000) for i in range(len(connections))]
        connection.close()


def test_two_servers_side_by_side(start_server):
    """Nothing is shared between servers on one machine."""
    first, second = start_server(), start_server()
    with first.connect() as one, second.connect() as two:
        one.value("SET", "k", pattern(100_000))
        assert two.value("EXISTS", "k") == 0
        ids = [dict(zip(*[iter(c.value("KV.HELLO", "1"))] * 2)) for c in (one, two)]
        assert ids[0][b"node"] != ids[1][b"node"]
        assert ids[0][b"epoch"] != ids[1][b"epoch"]
        assert ids[0][b"host"] == ids[1][b"host"]


def test_signals_that_mean_nothing(server):
    for number in (signal.SIGHUP, signal.SIGPIPE):
        server.process.send_signal(number)
    with server.connect() as connection:
        assert connection.value("PING") == b"PONG"


def test_the_process_cannot_be_looked_into(server):
    """Non-dumpable: its memory files belong to root, not to its user."""
    assert os.stat(f"/proc/{server.process.pid}/mem").st_uid == 0
    status = open(f"/proc/{server.process.pid}/status").read()
    assert re.search(r"^CoreDumping:\s+0$", status, re.M)


def test_memory_limit_larger_than_the_machine(start_server):
    """Memory is taken as it is needed, so this starts."""
    server = start_server(memory="100tb")
    with server.connect() as connection:
        assert connection.value("SET", "k", pattern(100_000)) == b"OK"


def test_defaults(tmp_path):
    """Without any flag but a free port."""
    port = free_port()
    server = Server([SERVER, "--port", port], port, tmp_path / "log", cwd=tmp_path)
    with server.connect() as connection:
        assert connection.value("SET", "k", pattern(100_000)) == b"OK"
        info = server.info()
        assert info["maxmemory_policy"] == "allkeys-prefix"
        assert 0 < int(info["maxmemory"]) <= int(info["total_system_memory"]) // 2
        assert info["shm"] == "on"
    assert server.stop() == 0
    assert os.listdir(tmp_path) == ["log"]


def test_connections_during_the_start(tmp_path):
    """As soon as the port answers, commands are answered."""
    port = free_port()
    process = subprocess.Popen([SERVER, "--port", str(port), "--maxmemory", "64mb"],
                               stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        def connected():
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
            except ConnectionRefusedError:
                return None
        first = wait_for(connected, "the port to answer")
        first.sendall(b"PING\r\n")
        assert first.recv(100) == b"+PONG\r\n"
        first.close()
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
