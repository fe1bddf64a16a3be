"""A raw RESP connection: what is sent and what comes back, byte for byte."""
import collections
import socket

# For anything that is waited for: sanitizer builds on a busy machine are slow.
DEADLINE_S = 180

# One reply: its type byte ("+", "-", ":", "$", "*", "%", "~", "_", "=", ...) and its value (bytes,
# int, None, or a list of replies; a map is a flat list of keys and values).
Reply = collections.namedtuple("Reply", "kind value")


class Closed(Exception):
    """The server closed the connection."""


def encode(*arguments):
    """A command as a RESP array; str, int and float arguments become text."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        if isinstance(argument, (int, float)):
            argument = repr(argument)
        if isinstance(argument, str):
            argument = argument.encode()
        parts += [b"$%d\r\n" % len(argument), bytes(argument), b"\r\n"]
    return b"".join(parts)


def plain(reply):
    """A reply as Python values: bytes, int, None, lists; a map as a dict; errors stay replies."""
    if reply.kind == "-":
        return reply
    if reply.kind == "%":
        items = [plain(item) for item in reply.value]
        return dict(zip(items[::2], items[1::2]))
    if reply.kind == "=":
        return reply.value[4:]
    if isinstance(reply.value, list):
        return [plain(item) for item in reply.value]
    return reply.value


class Connection:
    """`address`: a port, a (host, port) pair, or the path of a Unix socket."""

    def __init__(self, address, seconds=DEADLINE_S):
        if isinstance(address, int):
            address = ("127.0.0.1", address)
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, timeout=seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(seconds)
            self.socket.connect(str(address))
        self.input = bytearray()
        self.position = 0  # of the next reply in it

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def call(self, *arguments):
        """Sends a command and returns its reply."""
        self.send(encode(*arguments))
        return self.reply()

    def value(self, *arguments):
        """The same as Python values; fails on an error."""
        reply = self.call(*arguments)
        assert reply.kind != "-", (arguments[:4], reply)
        return plain(reply)

    def pipeline(self, commands):
        """Sends commands (tuples) at once, returns their replies."""
        self.send(b"".join(encode(*command) for command in commands))
        return [self.reply() for _ in commands]

    def _more(self):
        if self.position > 1 << 16:
            del self.input[:self.position]
            self.position = 0
        data = self.socket.recv(1 << 20)
        if not data:
            raise Closed(bytes(self.input[self.position:]))
        self.input += data

    def _line(self):
        searched = self.position
        while True:
            end = self.input.find(b"\r\n", searched)
            if end >= 0:
                line = bytes(self.input[self.position:end])
                self.position = end + 2
                return line
            searched = max(len(self.input) - 1, self.position)
            before = self.position
            self._more()
            searched -= before - self.position

    def _bytes(self, count):
        if len(self.input) - self.position < count + 2:
            # A long string: read it without growing the buffer again and again.
            parts = [bytes(self.input[self.position:])]
            have = len(parts[0])
            self.input.clear()
            self.position = 0
            while have < count + 2:
                part = self.socket.recv(min(count + 2 - have, 1 << 20))
                if not part:
                    raise Closed(b"in the middle of a string")
                parts.append(part)
                have += len(part)
            data = b"".join(parts)
        else:
            data = bytes(self.input[self.position:self.position + count + 2])
            self.position += count + 2
        assert data.endswith(b"\r\n"), "a string of the wrong length"
        return data[:-2]

    def reply(self):
        line = self._line()
        kind, rest = chr(line[0]), line[1:]
        if kind in "+-,#(":
            return Reply(kind, rest)
        if kind == ":":
            return Reply(kind, int(rest))
        if kind == "_":
            return Reply(kind, None)
        size = int(rest)
        if size < 0:
            return Reply(kind, None)
        if kind in "$=":
            return Reply(kind, self._bytes(size))
        if kind in "*%~>":
            count = size * 2 if kind == "%" else size
            return Reply(kind, [self.reply() for _ in range(count)])
        raise AssertionError(f"no reply begins with {line!r}")

    def closed(self):
        """Waits until the server closes; returns the bytes that came before."""
        data = bytes(self.input[self.position:])
        while True:
            try:
                part = self.socket.recv(1 << 20)
            except ConnectionResetError:
                return data
            if not part:
                return data
            data += part
