"""COMMAND, COMMAND INFO and COMMAND DOCS: shared commands look as in redis-server 7."""
import pytest

from resp import plain

FIELDS = ["name", "arity", "flags", "first key", "last key", "step", "categories", "tips",
          "key specs", "subcommands"]

# What Moonpool has and redis-server 7.0 has not.
NEW = {b"client|setinfo"}


def info(connection, *names):
    return {entry[0]: dict(zip(FIELDS, entry))
            for entry in plain(connection.call("COMMAND", "INFO", *names)) if entry}


def without_notes(spec):
    return {name: value for name, value in spec.items() if name != b"notes"}


def differences(name, ours, theirs):
    for field in FIELDS[:-1]:
        mine, other = ours[field], theirs[field]
        if field in ("flags", "categories", "tips"):
            mine, other = sorted(mine), sorted(other)
        if field == "key specs":
            mine, other = map(without_notes, mine), map(without_notes, other)
            mine, other = list(mine), list(other)
        if mine != other:
            yield f"{name} {field}: moonpool {mine}, redis {other}"
    subcommands = {entry[0]: dict(zip(FIELDS, entry)) for entry in theirs["subcommands"]}
    for entry in ours["subcommands"]:
        if entry[0] not in NEW:
            yield from differences(entry[0], dict(zip(FIELDS, entry)), subcommands[entry[0]])


def test_info_of_shared_commands(pair):
    ours, theirs = pair.connect()
    with ours, theirs:
        for connection in (ours, theirs):
            connection.value("HELLO", 3)
        mine, other = info(ours), info(theirs)
        shared = mine.keys() & other.keys()
        assert len(shared) > 55
        wrong = [line for name in sorted(shared)
                 for line in differences(name, mine[name], other[name])]
        assert not wrong, "\n".join(["", *wrong])
        # COMMAND, COMMAND INFO and COMMAND INFO name say the same.
        assert plain(ours.call("COMMAND")) == plain(ours.call("COMMAND", "INFO"))
        names = sorted(mine)
        assert plain(ours.call("COMMAND", "INFO", *names)) == plain(ours.call("COMMAND"))
        assert ours.value("COMMAND", "COUNT") == len(mine)
        assert sorted(ours.value("COMMAND", "LIST")) == names


def test_types_of_the_info_reply(pair):
    """Sets, maps and arrays where Redis has them, in both versions of RESP."""
    def shape(reply, depth=0):
        if isinstance(reply.value, list):
            # Of lists of alike things the first; their number differs with the tips and flags.
            return reply.kind, [shape(item, depth + 1) for item in reply.value[:None if depth < 2
                                                                               else 1]]
        return reply.kind

    for version in (2, 3):
        ours, theirs = pair.connect()
        with ours, theirs:
            for connection in (ours, theirs):
                connection.value("HELLO", version)
            for name in ("get", "mget", "ping", "rename", "config", "config|get", "dbsize"):
                replies = [connection.call("COMMAND", "INFO", name)
                           for connection in (ours, theirs)]
                if name == "config":
                    for reply in replies:
                        del reply.value[0].value[9].value[1:]
                assert shape(replies[0]) == shape(replies[1]), name


def tree(arguments):
    """What of the arguments matters to hints: words to type, values, choices and repetitions."""
    result = []
    for argument in arguments:
        flags = argument.get(b"flags", [])
        kind = argument[b"type"]
        nested = tree(argument.get(b"arguments", []))
        if kind == b"block" and len(nested) == 1:
            # A block of one is that one.
            inner = nested[0]
            result.append((inner[0], inner[1], b"optional" in flags or inner[2],
                           b"multiple" in flags or inner[3], inner[4]))
            continue
        name = b"" if nested else argument[b"name"]
        result.append(((kind, name), argument.get(b"token", b""), b"optional" in flags,
                       b"multiple" in flags, nested))
    return result


# Where Moonpool's hints are meant to be others.
OTHER_HINTS = {
    b"client|kill",          # the filters are one group, TYPE's words are values
    b"client|list",          # the same for TYPE
    b"command|getkeys",      # Redis says nothing
    b"incrbyfloat",          # the increment's type
}


def test_docs_of_shared_commands(pair):
    ours, theirs = pair.connect()
    with ours, theirs:
        for connection in (ours, theirs):
            connection.value("HELLO", 3)
        mine, other = ours.value("COMMAND", "DOCS"), theirs.value("COMMAND", "DOCS")
        wrong = []

        def compare(name, doc, reference):
            for field in (b"since", b"group"):
                if doc[field] != reference[field]:
                    wrong.append(f"{name} {field}: {doc[field]} {reference[field]}")
            hints = tree(doc.get(b"arguments", [])), tree(reference.get(b"arguments", []))
            if hints[0] != hints[1] and name not in OTHER_HINTS:
                wrong.append(f"{name}:\n  moonpool {hints[0]}\n  redis    {hints[1]}")
            for subcommand, text in doc.get(b"subcommands", {}).items():
                if subcommand not in NEW:
                    compare(subcommand, text, reference[b"subcommands"][subcommand])

        for name in sorted(mine.keys() & other.keys()):
            compare(name, mine[name], other[name])
        assert not wrong, "\n".join(["", *wrong])


def test_every_command_is_documented(pair):
    with pair.moonpool.connect() as connection:
        connection.value("HELLO", 3)
        docs = connection.value("COMMAND", "DOCS")
        assert set(docs) == set(connection.value("COMMAND", "LIST"))
        for name, doc in docs.items():
            assert doc[b"summary"].endswith(b"."), name
            assert doc[b"group"] and doc[b"since"] and doc[b"complexity"], name
            for subcommand, text in doc.get(b"subcommands", {}).items():
                assert subcommand.startswith(name + b"|")
                assert text[b"summary"].endswith(b"."), subcommand
        # One by one they say the same; unknown names are left out.
        assert connection.value("COMMAND", "DOCS", "get", "bogus", "config|set") == {
            b"get": docs[b"get"], b"config|set": docs[b"config"][b"subcommands"][b"config|set"]}


@pytest.mark.parametrize("container", ["CLIENT", "COMMAND", "CONFIG", "MEMORY", "OBJECT"])
def test_help_lists_the_subcommands(pair, container):
    with pair.moonpool.connect() as connection:
        lines = [line.decode() for line in connection.value(container, "HELP")]
        assert lines[0] == (container +
                            " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:")
        entry = plain(connection.call("COMMAND", "INFO", container))[0]
        for subcommand in entry[9]:
            word = subcommand[0].decode().split("|")[1].upper()
            assert any(line.split(" ")[0] == word for line in lines[1:]), word
