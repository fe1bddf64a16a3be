"""Thousands of random commands over a few keys, to Moonpool and to redis-server 7: same replies.

MOONPOOL_SEED repeats a run; MOONPOOL_COMMANDS says how many commands (default 10000).
"""
import os
import random
import time

from conftest import sanitized
from test_differential import brief, pattern, same

# Far enough apart that no comparison of two times depends on when a command arrived: absolute
# times are after 2100, relative ones within weeks.
ABSOLUTE_S = range(5_000_000_000, 5_000_000_020)
RELATIVE_S = range(100_000, 2_000_000, 100_000)

KEYS = [b"a", b"b", b"c", b"n", b"m", b"big", b"huge", b"", b"\x00\r\n\xff", b"user:1", b"user:2"]
# Around the sizes where values are stored differently: embedded, inline, in an extent.
SIZES = [0, 1, 20, 43, 44, 45, 63, 64, 255, 256, 1000, 4095, 4096, 4097, 16384,
         65535, 65536, 65537, 70_000, 131_072, 262_145]
NUMBERS = ["0", "1", "-1", "7", "123456789", "9223372036854775807", "-9223372036854775808",
           "9223372036854775808", "1.5", "-0.25", "1e3", "abc", "", " 1", "00", "+1"]


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, choices):
        return self.random.choice(choices)

    def chance(self, share):
        return self.random.random() < share

    def key(self):
        return self.one(KEYS)

    def keys(self, most=4):
        return [self.key() for _ in range(self.random.randint(1, most))]

    def value(self):
        if self.chance(0.35):
            return self.one(NUMBERS)
        if self.chance(0.01):
            return pattern(self.random.randint(1_000_000, 3_000_000))
        size = self.one(SIZES)
        start = self.random.randrange(64)
        return pattern(size + start)[start:]

    def number(self):
        return self.one(NUMBERS) if self.chance(0.3) else str(self.random.randint(-1000, 1000))

    def offset(self):
        around = self.one([0, 10, 65_530, 65_540, 131_072, 300_000])
        return str(self.one([-1, 1, 1, 1]) * around + self.random.randint(-5, 20))

    def seconds(self):
        if self.chance(0.1):
            return self.one(["0", "-1", "x", "1.5", "9223372036854775807", ""])
        return str(self.one(RELATIVE_S))

    def milliseconds(self):
        text = self.seconds()
        return text + "000" if text.isdigit() and len(text) < 12 and text != "0" else text

    def at_s(self):
        if self.chance(0.15):
            return self.one(["1", "1000", "0", "-5", "x", "9223372036854775807"])
        return str(self.one(ABSOLUTE_S))

    def at_ms(self):
        text = self.at_s()
        return text + "%03d" % self.random.randrange(1000) if len(text) == 10 else text

    def expiry(self):
        word, value = self.one([("EX", self.seconds), ("PX", self.milliseconds),
                                ("EXAT", self.at_s), ("PXAT", self.at_ms)])
        return [word, value()]

    def set(self):
        options = []
        if self.chance(0.3):
            options.append([self.one(["NX", "XX", "nx", "xx"])])
        if self.chance(0.3):
            options.append(["GET"])
        if self.chance(0.35):
            options.append(self.expiry() if self.chance(0.75) else ["KEEPTTL"])
        if self.chance(0.05):
            options.append([self.one(["NX", "XX", "EX", "BOGUS", "PERSIST", "KEEPTTL", ""])])
        self.random.shuffle(options)
        return ["SET", self.key(), self.value(), *sum(options, [])]

    def expire(self):
        name, time_of = self.one([("EXPIRE", self.seconds), ("PEXPIRE", self.milliseconds),
                                  ("EXPIREAT", self.at_s), ("PEXPIREAT", self.at_ms)])
        flags = []
        # Two relative times may differ by less than the servers' skew.
        words = ["NX", "XX", "GT", "LT"] if name.endswith("AT") else ["NX", "XX"]
        while self.chance(0.3):
            flags.append(self.one(words + (["BOGUS"] if self.chance(0.1) else [])))
        return [name, self.key(), time_of(), *flags]

    def command(self):
        """(how to compare, the command)"""
        key, random_ = self.key, self.random
        roll = random_.random()
        if roll < 0.18:
            return "", self.set()
        if roll < 0.28:
            return "", self.expire()
        make = self.one([
            lambda: ("", ["GET", key()]),
            lambda: ("", ["GET", key()]),
            lambda: ("", ["STRLEN", key()]),
            lambda: ("", ["SETNX", key(), self.value()]),
            lambda: ("", ["SETEX", key(), self.seconds(), self.value()]),
            lambda: ("", ["PSETEX", key(), self.milliseconds(), self.value()]),
            lambda: ("", ["GETSET", key(), self.value()]),
            lambda: ("", ["GETDEL", key()]),
            lambda: ("", ["GETEX", key()]),
            lambda: ("", ["GETEX", key(), *self.one([["PERSIST"], self.expiry()])]),
            lambda: ("", ["MGET", *self.keys(6)]),
            lambda: ("", ["MSET", *sum(([k, self.value()] for k in self.keys()), [])]),
            lambda: ("", ["MSETNX", *sum(([k, self.value()] for k in self.keys(2)), [])]),
            lambda: ("", ["APPEND", key(), self.value()]),
            lambda: ("", ["SETRANGE", key(), self.offset(), self.value()]),
            lambda: ("", ["SETRANGE", key(), self.offset(), "x" * random_.randrange(30)]),
            lambda: ("", [self.one(["GETRANGE", "SUBSTR"]), key(), self.offset(),
                          self.offset()]),
            lambda: ("", ["INCR", key()]),
            lambda: ("", ["DECR", key()]),
            lambda: ("", ["INCRBY", key(), self.number()]),
            lambda: ("", ["DECRBY", key(), self.number()]),
            lambda: ("", ["INCRBYFLOAT", key(), self.number()]),
            lambda: ("", ["DEL", *self.keys(2)]),
            lambda: ("", ["UNLINK", key()]),
            lambda: ("", ["EXISTS", *self.keys()]),
            lambda: ("", ["TOUCH", *self.keys()]),
            lambda: ("", ["TYPE", key()]),
            lambda: ("%", ["KEYS", self.one(["*", "user:*", "?", "[a-c]", "*\x00*", "big"])]),
            lambda: ("%", ["SCAN", "0", "COUNT", "10000",
                           *self.one([[], ["MATCH", "user:*"], ["TYPE", "string"],
                                      ["TYPE", "list"], ["MATCH", "[^u]*"]])]),
            lambda: ("?", ["RANDOMKEY"]),
            lambda: ("", ["RENAME", key(), key()]),
            lambda: ("", ["RENAMENX", key(), key()]),
            lambda: ("", ["COPY", key(), key(), *self.one([[], ["REPLACE"], ["DB", "0"]])]),
            lambda: ("", ["EXPIRETIME", key()]) if self.chance(0.01) else
                    ("~", ["PEXPIRETIME", key()]),
            lambda: ("~", ["PTTL", key()]),
            lambda: ("~", ["TTL", key()]),
            lambda: ("", ["PERSIST", key()]),
            lambda: ("?", ["OBJECT", self.one(["ENCODING", "REFCOUNT", "IDLETIME"]), key()]),
            # Redis still counts a key that has expired.
            lambda: ("!", ["MEMORY", "USAGE", key()]),
            lambda: ("", ["PING", *self.keys(1)]),
            lambda: ("", ["ECHO", self.value()]),
            lambda: ("", ["SELECT", "0"]),
            lambda: ("?", ["TIME"]),
            lambda: ("", ["CLIENT", "GETNAME"]),
            lambda: ("", ["CLIENT", "SETNAME", self.one(["x", "y", "", "a b"])]),
            lambda: ("?", ["CLIENT", "ID"]),
            lambda: ("?", ["CLIENT", "LIST"]),
            lambda: ("?", ["HELLO", self.one(["2", "3"])]),
            lambda: ("", ["AUTH", "x"]),
            lambda: ("", ["COMMAND", "GETKEYS", *self.set()]),
            lambda: ("", ["CONFIG", "GET", self.one(["timeout", "bogus", "appendonly"])]),
            lambda: ("?", ["INFO", self.one(["server", "keyspace", "all"])]),
            lambda: ("", ["BOGUS", self.number()]),
            lambda: ("", [self.one(["FLUSHALL", "FLUSHDB"]), *self.one([[], ["ASYNC"]])])
                    if self.chance(0.2) else ("", ["RESET"]),
        ])
        return make()


def test_random_commands(pair):
    seed = int(os.environ.get("MOONPOOL_SEED", time.time_ns() % 1_000_000_007))
    count = int(os.environ.get("MOONPOOL_COMMANDS", 2500 if sanitized() else 10000))
    print(f"MOONPOOL_SEED={seed}")
    generator = Generator(seed)
    ours, theirs = pair.connect()
    with ours, theirs:
        for connection in (ours, theirs):
            connection.value("FLUSHALL")
        done = 0
        history = []
        while done < count:
            # Pipelines of any depth; what Redis calls expired depends on the clock of a batch,
            # which no command here comes close to.
            batch = [generator.command() for _ in range(generator.random.choice([1, 2, 7, 40]))]
            commands = [command for _, command in batch]
            replies = zip(ours.pipeline(commands), theirs.pipeline(commands))
            for (marker, command), (mine, other) in zip(batch, replies):
                history.append(command)
                assert same(mine, other, marker), (
                    f"MOONPOOL_SEED={seed}, command {len(history)}: {brief(command)}\n"
                    f"moonpool {brief(mine)}\nredis    {brief(other)}\nbefore it:\n" +
                    "\n".join(brief(earlier) for earlier in history[-12:-1]))
            done += len(batch)
        # What is left is the same, to the last byte.
        for connection in (ours, theirs):
            connection.value("HELLO", 2)
        assert ours.value("DBSIZE") == theirs.value("DBSIZE")
        for key in KEYS:
            for command in (["GET", key], ["EXPIRETIME", key]):
                assert same(ours.call(*command), theirs.call(*command),
                            "~" if command[0] == "EXPIRETIME" else ""), key
