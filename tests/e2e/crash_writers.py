"""Writers that are cut off by kill -9, and what may be served afterwards: what was acknowledged
last, what was not answered, or nothing; never anything older."""
import random
import threading

import redis

import shm
from conftest import DEADLINE_S
from resp import Closed
from ssd import KIB, stamped, version_of

CONNECTION_ENDS = (redis.ConnectionError, ConnectionError, Closed)


class Model:
    """The versions that each key may hold; None: none at all, which is always allowed, for the
    cache may forget.  A key has one writer, and whoever says FLUSHALL changes all of them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.may = {}
        self.begun = {}  # changes of the key by its writer
        self.ended = {}
        self.acknowledged = 0
        self.flushes = 0

    def add(self, key):
        self.may[key] = {None}
        self.begun[key] = self.ended[key] = 0

    def now(self, key):
        with self.lock:
            return set(self.may[key])

    def begin(self, keys, version=None):
        """Until the answer has come, either may be.  Returns what the first held before."""
        with self.lock:
            before = set(self.may[keys[0]])
            for key in keys:
                self.may[key] |= {version, None}
                self.begun[key] += 1
        return before

    def end(self, keys, version=None):
        with self.lock:
            for key in keys:
                self.may[key] = {version, None}
                self.ended[key] += 1
            self.acknowledged += 1

    def refused(self, keys):
        """Neither changed nor acknowledged."""
        with self.lock:
            for key in keys:
                self.ended[key] += 1

    def begin_flush(self):
        """The keys that nobody is changing."""
        with self.lock:
            return {key: count for key, count in self.begun.items() if count == self.ended[key]}

    def end_flush(self, quiet):
        """What was there before is gone; what was written meanwhile may be."""
        with self.lock:
            for key, count in quiet.items():
                if self.begun[key] == count:
                    self.may[key] = {None}
            self.flushes += 1

    def restarted(self, key, version):
        """What is served after a restart is what it holds: nothing else comes back later."""
        self.may[key] = {version, None}
        self.ended[key] = self.begun[key]


class Writer(threading.Thread):
    """Changes keys of its own until the server is gone."""

    def __init__(self, name, model, seed, port):
        super().__init__(name=name)
        self.keys = [f"{name}:{i}" for i in range(60)]
        self.model = model
        self.random = random.Random(seed)
        self.port = port
        self.wrong = []

    def version(self):
        # Never used twice, not by the writer of the next round either.
        return self.random.getrandbits(62)

    def check(self, key, data, may):
        version = None if data is None else version_of(key, data)
        if version is not None and version not in may:
            self.wrong.append(f"{key} is version {version}, not one of {may}")
        return version

    def change(self, client, session):
        kind = self.random.choices(
            ["set", "commit", "get", "del", "expire", "getset", "getdel", "drop", "flush"],
            [70, 50, 60, 20, 10, 10, 10, 1, 0.3])[0]
        key = self.random.choice(self.keys)
        if kind == "get":
            may = self.model.now(key)
            self.check(key, client.get(key), may)
        elif kind == "flush":
            quiet = self.model.begin_flush()
            client.flushall(asynchronous=self.random.random() < 0.5)
            self.model.end_flush(quiet)
        elif kind == "drop":
            self.model.begin(self.keys)
            client.execute_command("KV.DROP", *self.random.choice(
                [("NAMESPACE", self.name), ("MATCH", f"{self.name}:*")]))
            self.model.end(self.keys)
        elif kind in ("set", "commit", "getset"):
            self.write(client, session, kind, key)
        else:
            before = self.model.begin([key])
            if kind == "del":
                client.delete(key)
            elif kind == "expire":
                client.pexpireat(key, 1)
            else:
                self.check(key, client.getdel(key), before)
            self.model.end([key])

    def write(self, client, session, kind, key):
        version = self.version()
        data = stamped(key, version, self.random.choice([50, 100 * KIB, 250 * KIB + 5, 500 * KIB]))
        before = self.model.begin([key], version)
        if kind == "set":
            client.set(key, data)
        elif kind == "getset":
            self.check(key, client.getset(key, data), before)
        elif why := session.put(key, data):
            assert why.startswith((b"OOM ", b"ERR the write arena")), why
            return self.model.refused([key])
        self.model.end([key], version)

    def run(self):
        client = redis.Redis(port=self.port, socket_timeout=DEADLINE_S, retry=None)
        session = None
        try:
            session = shm.Session(self.port)
            while not self.wrong:
                self.change(client, session)
        except CONNECTION_ENDS:
            pass
        except Exception as failure:  # pylint: disable=broad-except
            self.wrong.append(repr(failure))
        client.close()
        if session is not None:
            session.close()
