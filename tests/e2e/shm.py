"""A session that writes through shared memory, without libmoonpool: KV.ALLOC, a copy, KV.COMMIT."""
import mmap
import os
import select
import socket
import struct

from resp import DEADLINE_S, Connection

# See protocol/attach_wire.h.
MESSAGE = struct.Struct("=4I2QI2BH32s16s64s")
MAGIC, VERSION = 0x4c4f504d, 3
HELLO, WELCOME, WANT, REGION, MAPPED, SEALED, GONE, UNMAPPED = range(1, 9)


def following(word, reply):
    """What comes after a word, anywhere in a nested reply."""
    if not isinstance(reply, list):
        return None
    if word in reply:
        return reply[reply.index(word) + 1]
    return next(filter(None, (following(word, part) for part in reply)), None)


class Session:
    """Raises ConnectionError when the server is gone."""

    def __init__(self, port):
        self.connection = Connection(port)
        hello = self.connection.value("KV.HELLO", 1)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(b"\0" + following(b"attach", hello)[1:])
        self.arenas = {}
        self._send(HELLO, 0, following(b"token", hello))
        os.close(self._receive(WELCOME)[1][0])  # the generations, which only readers need

    def close(self):
        for arena in self.arenas.values():
            arena.close()
        self.socket.close()
        self.connection.close()

    def put(self, key, data):
        """None, or why it was refused."""
        [reserved] = self.connection.value("KV.ALLOC", 1, key, len(data))
        if not isinstance(reserved, list):
            return reserved.value
        token, region, offset, _ = reserved
        self._arena(region)[offset:offset + len(data)] = data
        [committed] = self.connection.value("KV.COMMIT", 1, key, token, "-")
        return None if committed == b"OK" else committed.value

    def _send(self, kind, region, token=b""):
        self.socket.sendall(MESSAGE.pack(MAGIC, VERSION, kind, region, 0, 0, 0, 0, 0, 0, token,
                                         b"", b""))

    def _receive(self, wanted):
        """The next message of that kind: how many bytes it tells of, and the files beside it."""
        while True:
            data, files, _, _ = socket.recv_fds(self.socket, MESSAGE.size, 1)
            if not data:
                raise ConnectionResetError("the attach socket was closed")
            _, _, kind, region, size, *_ = MESSAGE.unpack(data)
            if kind == GONE:
                if region in self.arenas:
                    self.arenas.pop(region).close()
                self._send(UNMAPPED, region)
            else:
                assert kind == wanted, (kind, wanted)
            if kind == wanted:
                return size, files

    def _arena(self, region):
        while select.select([self.socket], [], [], 0)[0]:
            self._receive(GONE)
        if region not in self.arenas:
            self._send(WANT, region)
            size, [file] = self._receive(REGION)
            self.arenas[region] = mmap.mmap(file, size)
            os.close(file)
            self._send(MAPPED, region)
            self._receive(SEALED)
        return self.arenas[region]
