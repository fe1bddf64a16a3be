"""The same commands to Moonpool and to redis-server 7: the replies must be the same bytes.

A case is a list of lines, one command each.  Words are separated by spaces; "..." is a string
with Python's escapes; @N are N bytes of a pattern.  What stands before a command says how its
replies are compared: nothing: exactly; ~ numbers at most two minutes (of milliseconds) apart;
? the type of the reply alone; % as a set; ! only whether it is an error.
"""
import re

import pytest

from resp import Reply, encode, plain

NEAR = 120_000

CASES = {
    "get": """
        GET missing
        SET k v
        GET k
        SET k ""
        GET k
        SET k "\\x00\\r\\n\\xff"
        GET k
        SET "\\x00key\\xff\\r\\n" binary
        GET "\\x00key\\xff\\r\\n"
        GET "\\x00key"
        SET "" empty
        GET ""
        EXISTS ""
        get k
        gEt k
        GET
        GET k k
        SET k 12
        GET k
        SET k 012
        GET k
        SET k -0
        GET k
        SET k 99999999999999999999
        GET k
        SET k @65535
        GET k
        SET k @65536
        GET k
        SET k @65537
        GET k
        SET k @3000000
        GET k
        SET k @100
        GET k
    """,
    "set options": """
        SET k v NX
        SET k w NX
        GET k
        SET k x XX
        GET k
        SET other x XX
        GET other
        SET k y NX XX
        SET k y XX NX
        SET k y GET
        GET k
        SET new y GET
        GET new
        SET k z NX GET
        GET k
        SET new2 z NX GET
        GET new2
        SET k z XX GET
        SET new3 z XX GET
        GET new3
        SET k v NX NX
        SET k v XX XX
        SET k v GET GET
        SET k v EX 100
        ~ PTTL k
        SET k v EX 200 EX 300
        ~ PTTL k
        SET k v PX 200000 PX 300000
        ~ PTTL k
        SET k v EX 100 PX 100
        SET k v PX 100 EX 100
        SET k v EX 100 EXAT 9999999999
        SET k v EXAT 9999999999 PXAT 9999999999000
        SET k v EX 100 KEEPTTL
        SET k v KEEPTTL EX 100
        SET k v KEEPTTL PXAT 1000
        SET k v EXAT 9999999999
        EXPIRETIME k
        PEXPIRETIME k
        SET k w KEEPTTL
        EXPIRETIME k
        SET k w KEEPTTL KEEPTTL
        EXPIRETIME k
        SET k w
        TTL k
        SET k v PXAT 9999999999123
        PEXPIRETIME k
        EXPIRETIME k
        SET k v EX 0
        SET k v PX 0
        SET k v EX -1
        SET k v EXAT 0
        SET k v PXAT -5
        SET k v EX notanumber
        SET k v EX 1.5
        SET k v EX 9223372036854775807
        SET k v EX 9223372036854775
        SET k v EX 9223372036854776
        SET k v PX 9223372036854775807
        SET k v EXAT 9223372036854775807
        SET k v EXAT 9223372036854775
        SET k v PXAT 9223372036854775807
        PEXPIRETIME k
        SET k v EX
        SET k v PX
        SET k v NX EX
        SET k v BOGUS
        SET k v "" 
        SET k v ex 100 nx
        SET k v XX KEEPTTL GET
        SET fresh v ex 100 nx get
        ~ PTTL fresh
        SET k v PXAT 1
        GET k
        EXISTS k
        TTL k
        SET k v EXAT 1
        TYPE k
        SET gone v PXAT 1
        SET gone w NX
        GET gone
        SET gone v PXAT 1
        SET gone w XX
        SET gone v PXAT 1
        SET gone w GET
        SET k
        SET
        SET k @70000 NX
        SET big @70000 NX
        SET big @80000 NX
        STRLEN big
        SET big @90000 XX GET
        SET big @10 GET
        SET big @80000 GET
        SET big @80000 BOGUS
        SET big @80000 EX 0
        SET big2 @80000 XX
        EXISTS big2
        SET big @80000 EXAT 9999999999
        SET big @90000 KEEPTTL
        EXPIRETIME big
        SET big @90000
        EXPIRETIME big
        SET @70000 v
        GET @70000
        SET @70000 @70001
        STRLEN @70000
        SET k v @70000
        SET k v EX @70000
    """,
    "setnx setex psetex getset getdel": """
        SETNX k v
        SETNX k w
        GET k
        SETNX big @100000
        SETNX big @200000
        STRLEN big
        SETNX k
        SETNX k v w
        SETEX k 100 v
        ~ PTTL k
        SETEX k 0 v
        SETEX k -1 v
        SETEX k x v
        SETEX k 9223372036854775807 v
        SETEX k 100
        SETEX k 100 v w
        PSETEX k 100000 v
        ~ PTTL k
        PSETEX k 0 v
        PSETEX k -9 v
        PSETEX k 9223372036854775807 v
        PSETEX k 1e3 v
        SETEX big 1000 @100000
        STRLEN big
        SETEX big 0 @100001
        STRLEN big
        PSETEX big 1000000 @65536
        STRLEN big
        GETSET k w
        TTL k
        GETSET nothing w
        GETSET nothing @65536
        GETSET nothing @10
        GETSET k
        GETDEL k
        GETDEL k
        GETDEL big
        EXISTS big
        GETDEL
        GETDEL k k
        SET k v PXAT 1
        GETDEL k
        SET k v PXAT 1
        GETSET k v
        SET k v PXAT 1
        SETNX k v
    """,
    "getex": """
        GETEX missing
        GETEX missing EX 100
        SET k v
        GETEX k
        TTL k
        GETEX k EX 100
        ~ PTTL k
        GETEX k PX 100000
        ~ PTTL k
        GETEX k EXAT 9999999999
        PEXPIRETIME k
        GETEX k PXAT 9999999999999
        PEXPIRETIME k
        GETEX k
        PEXPIRETIME k
        GETEX k PERSIST
        TTL k
        GETEX k PERSIST
        GETEX k PERSIST PERSIST
        GETEX k EX 100 PERSIST
        GETEX k PERSIST EX 100
        GETEX k EX 100 EX 200
        ~ PTTL k
        GETEX k EX 100 PX 100
        GETEX k EX
        GETEX k EX 0
        GETEX k EX -1
        GETEX k PX x
        GETEX k EX 9223372036854775807
        GETEX k KEEPTTL
        GETEX k NX
        GETEX k GET
        GETEX k BOGUS
        GETEX
        GETEX missing EX 0
        GETEX missing BOGUS
        GETEX missing EX x
        GETEX k PXAT 1
        EXISTS k
        SET big @100000
        GETEX big EX 1000
        ~ PTTL big
        GETEX big EXAT 1
        GETEX big
    """,
    "mget mset msetnx": """
        MGET a b c
        MSET a 1 b 2
        MGET a b c a
        MSET a 1 b
        MSET a
        MSET
        MSET a 1 a 2 a 3
        GET a
        MSET a @65536 b @10 c @70000
        MGET a b c missing a
        MGET
        MSETNX a x d y
        EXISTS d
        MSETNX d 1 e 2
        MGET d e
        MSETNX f 1 f 2
        GET f
        MSETNX f
        MSETNX g 1 h
        MSETNX g @65536 h @65537
        MSETNX h @100000 i @100001
        EXISTS g h i
        SET k v EXAT 9999999999
        MSET k w
        TTL k
        SET k v PXAT 1
        MGET k a
        SET k v PXAT 1
        MSETNX k 1 kk 2
        MGET k kk
        MSET "" "" "\\r\\n" "\\x00"
        MGET "" "\\r\\n"
    """,
    "append strlen": """
        APPEND k abc
        APPEND k def
        GET k
        STRLEN k
        STRLEN missing
        APPEND k ""
        APPEND empty ""
        EXISTS empty
        STRLEN empty
        TYPE empty
        SET k v EXAT 9999999999
        APPEND k w
        EXPIRETIME k
        SET n 5
        APPEND n 6
        INCR n
        APPEND big @65530
        APPEND big 12345
        APPEND big 6
        GET big
        APPEND big @65530
        APPEND big @1000000
        GET big
        STRLEN big
        APPEND fresh @65536
        GET fresh
        APPEND
        APPEND k
        APPEND k v w
        STRLEN
        STRLEN a b
        SET k v PXAT 1
        APPEND k w
        GET k
        SET k v PXAT 1
        STRLEN k
        SET big @65535 EXAT 9999999999
        APPEND big x
        EXPIRETIME big
    """,
    "getrange substr": """
        SET k "This is a string"
        GETRANGE k 0 3
        GETRANGE k -3 -1
        GETRANGE k 0 -1
        GETRANGE k 10 100
        GETRANGE k 5 3
        GETRANGE k -1 -5
        GETRANGE k -100 -200
        GETRANGE k -200 -100
        GETRANGE k -100 2
        GETRANGE k 16 20
        GETRANGE k 15 20
        GETRANGE k 0 0
        GETRANGE k 9223372036854775807 9223372036854775807
        GETRANGE k -9223372036854775808 9223372036854775807
        GETRANGE k -9223372036854775808 -9223372036854775808
        GETRANGE k 0 -9223372036854775808
        GETRANGE k 9223372036854775808 1
        GETRANGE k a b
        GETRANGE k 0 b
        GETRANGE k 1.0 2
        GETRANGE missing 0 -1
        GETRANGE missing a 1
        GETRANGE k 0
        GETRANGE k 0 1 2
        SET empty ""
        GETRANGE empty 0 -1
        GETRANGE empty -1 0
        SUBSTR k 0 3
        SUBSTR k -3 -1
        SUBSTR k a b
        SUBSTR k
        SET n 12345
        GETRANGE n 1 2
        SET big @1000000
        GETRANGE big 0 -1
        GETRANGE big 65530 65540
        GETRANGE big 1 4095
        GETRANGE big 1 4096
        GETRANGE big 1 4097
        GETRANGE big -70000 -1
        GETRANGE big 999999 1000000
        GETRANGE big 1000000 1000001
        SUBSTR big -5 -1
        SET k v PXAT 1
        GETRANGE k 0 -1
    """,
    "setrange": """
        SETRANGE k 0 hello
        SETRANGE k 6 world
        GET k
        SETRANGE k 0 ""
        SETRANGE k 1000 ""
        SETRANGE missing 0 ""
        SETRANGE missing 100 ""
        EXISTS missing
        SETRANGE k -1 x
        SETRANGE k -9223372036854775808 x
        SETRANGE missing -1 ""
        SETRANGE k a x
        SETRANGE k 1.5 x
        SETRANGE k 536870911 xx
        SETRANGE k 536870912 x
        SETRANGE missing 536870912 x
        SETRANGE k 9223372036854775807 x
        SETRANGE k 9223372036854775807 ""
        SETRANGE k 9223372036854775808 x
        SETRANGE k 99999999999999999999 x
        SETRANGE k 4294967296 x
        SETRANGE
        SETRANGE k 0
        SETRANGE k 0 a b
        SET n 12345
        SETRANGE n 1 9
        INCR n
        SET k v EXAT 9999999999
        SETRANGE k 3 w
        EXPIRETIME k
        GET k
        SETRANGE big 70000 x
        GET big
        SETRANGE big 10 @100
        SETRANGE big 69990 @100
        GET big
        SETRANGE edge 65534 x
        STRLEN edge
        SETRANGE edge 65535 x
        GET edge
        SETRANGE edge 65536 x
        SETRANGE edge 0 @70000
        GET edge
        SETRANGE fresh 0 @65536
        SETRANGE fresh2 1000000 @65536
        GET fresh2
        SET k v PXAT 1
        SETRANGE k 2 w
        GET k
    """,
    "incr decr": """
        INCR n
        INCR n
        DECR n
        DECR m
        INCRBY n 10
        DECRBY n 3
        GET n
        SET n 9223372036854775807
        INCR n
        INCRBY n 1
        DECR n
        INCRBY n 1
        SET n -9223372036854775808
        DECR n
        DECRBY n 1
        INCR n
        DECRBY n 9223372036854775807
        SET n 0
        DECRBY n -9223372036854775808
        DECRBY n 9223372036854775807
        INCRBY n -9223372036854775808
        INCRBY n 9223372036854775808
        INCRBY n 1.0
        INCRBY n abc
        INCRBY n ""
        INCRBY n " 1"
        INCRBY n "1 "
        INCRBY n +1
        INCRBY n 01
        INCRBY n -0
        DECRBY n x
        SET n abc
        INCR n
        SET n ""
        INCR n
        SET n " 1"
        INCR n
        SET n "1 "
        INCR n
        SET n +1
        INCR n
        SET n 01
        INCR n
        SET n -0
        INCR n
        SET n 1.0
        INCR n
        SET n 1e3
        INCR n
        SET n "1\\x00"
        INCR n
        SET n 12345678901234567890
        INCR n
        SET n 11 EXAT 9999999999
        INCR n
        EXPIRETIME n
        DECRBY n 100
        EXPIRETIME n
        SET n @65536
        INCR n
        DECRBY n 3
        SET n 5 PXAT 1
        INCR n
        TTL n
        INCR
        INCR a b
        DECR
        INCRBY n
        INCRBY n 1 2
        DECRBY n
    """,
    "incrbyfloat": """
        INCRBYFLOAT f 1.5
        INCRBYFLOAT f 1
        INCRBYFLOAT f -2.5
        INCRBYFLOAT f 0
        INCRBYFLOAT f 3.0e3
        INCRBYFLOAT f 0x10
        INCRBYFLOAT f 1e-5
        SET f 10.50
        INCRBYFLOAT f 0.1
        INCRBYFLOAT f -5
        SET f 5.0e3
        INCRBYFLOAT f 2.0e2
        SET f 3
        INCRBYFLOAT f 1.000000000000000005
        SET f 0.1
        INCRBYFLOAT f 0.2
        SET f 1
        INCRBYFLOAT f abc
        INCRBYFLOAT f ""
        INCRBYFLOAT f " 1"
        INCRBYFLOAT f "1 "
        INCRBYFLOAT f +1
        INCRBYFLOAT f 1,5
        INCRBYFLOAT f nan
        INCRBYFLOAT f inf
        INCRBYFLOAT f -inf
        INCRBYFLOAT f +inf
        INCRBYFLOAT f 1e4932
        INCRBYFLOAT f 1e4932
        INCRBYFLOAT f 1e4933
        SET f 1e17
        INCRBYFLOAT f 1
        SET f 1e300
        INCRBYFLOAT f 1
        SET f 17179869184
        INCRBYFLOAT f 1.25
        SET f 1e-4950
        INCRBYFLOAT f 1
        SET f abc
        INCRBYFLOAT f 1
        SET f ""
        INCRBYFLOAT f 1
        SET f " 1"
        INCRBYFLOAT f 1
        SET f "1\\x00"
        INCRBYFLOAT f 1
        SET f 1
        INCRBYFLOAT f "1\\x00"
        SET f nan
        INCRBYFLOAT f 1
        SET f inf
        INCRBYFLOAT f 1
        INCRBYFLOAT f -inf
        SET f -1.5
        INCRBYFLOAT f 1.5
        SET f 0
        INCRBYFLOAT f -0.0
        SET f 1 EXAT 9999999999
        INCRBYFLOAT f 1
        EXPIRETIME f
        SET f @65536
        INCRBYFLOAT f 1
        SET f 1
        INCRBYFLOAT f @65536
        SET f 5 PXAT 1
        INCRBYFLOAT f 1
        INCRBYFLOAT f
        INCRBYFLOAT f 1 2
    """,
    "del unlink exists touch type": """
        DEL missing
        MSET a 1 b 2 c 3 d @70000
        EXISTS a b c d e a a
        TOUCH a b missing a
        DEL a b missing
        EXISTS a b c
        DEL c c
        UNLINK d d missing
        DBSIZE
        SET k v
        TYPE k
        TYPE missing
        SET k v PXAT 1
        EXISTS k
        SET k v PXAT 1
        DEL k
        SET k v PXAT 1
        UNLINK k
        SET k v PXAT 1
        TOUCH k
        SET k v PXAT 1
        TYPE k
        DEL
        UNLINK
        EXISTS
        TOUCH
        TYPE
        TYPE a b
        DEL "" "\\x00"
    """,
    "keys scan randomkey dbsize": """
        RANDOMKEY
        KEYS *
        SCAN 0
        DBSIZE
        MSET one 1 two 2 three 3 "\\xff\\x00" 4 h[llo 5 "h^llo" 6 hallo 7
        DBSIZE
        % KEYS *
        % KEYS t*
        % KEYS ?n?
        % KEYS [ot]*
        % KEYS [^o]*
        % KEYS h[a-z]llo
        % KEYS h[z-a]llo
        % KEYS h\\\\[llo
        % KEYS h[\\\\[\\\\^]llo
        % KEYS *\\x00
        % KEYS "\\xff*"
        % KEYS ONE
        % KEYS ""
        % KEYS [
        % KEYS [o
        % KEYS one\\\\
        % KEYS **e
        % SCAN 0 COUNT 1000
        % SCAN 0 MATCH t* COUNT 1000
        % SCAN 0 COUNT 1000 MATCH *e
        % SCAN 0 COUNT 1000 MATCH * MATCH two
        % SCAN 0 TYPE string COUNT 1000
        % SCAN 0 TYPE STRING COUNT 1000
        % SCAN 0 TYPE hash COUNT 1000
        % SCAN 0 TYPE bogus COUNT 1000
        SCAN 0 COUNT 0
        SCAN 0 COUNT -1
        SCAN 0 COUNT x
        SCAN 0 COUNT
        SCAN 0 MATCH
        SCAN 0 TYPE
        SCAN 0 BOGUS x
        SCAN 0 BOGUS
        SCAN x
        SCAN 1x
        SCAN " 0"
        SCAN 18446744073709551616
        SCAN
        KEYS
        KEYS a b
        RANDOMKEY x
        DBSIZE x
        ? RANDOMKEY
        FLUSHALL
        SET only v
        RANDOMKEY
        SET only v PXAT 1
        RANDOMKEY
        KEYS *
    """,
    "rename": """
        RENAME missing other
        RENAMENX missing other
        RENAME missing missing
        RENAMENX missing missing
        SET a 1
        RENAME a b
        EXISTS a
        GET b
        RENAME b b
        RENAMENX b b
        SET c 3
        RENAMENX b c
        RENAME b c
        MGET b c
        SET a 1 EXAT 9999999999
        SET b 2
        RENAME a b
        EXPIRETIME b
        SET a 1
        RENAME b a
        EXPIRETIME a
        SET b 2 EXAT 8888888888
        SET c 2
        RENAME c b
        TTL b
        SET big @100000 EXAT 9999999999
        RENAME big big2
        GET big2
        EXPIRETIME big2
        RENAMENX big2 big
        SET small v
        RENAME big small
        STRLEN small
        RENAME small big
        SET small v
        RENAME small big
        GET big
        SET gone v PXAT 1
        RENAME gone other
        SET gone v PXAT 1
        RENAMENX gone other
        SET gone v PXAT 1
        SET k v
        RENAMENX k gone
        GET gone
        RENAME
        RENAME a
        RENAME a b c
        RENAMENX a
    """,
    "copy": """
        COPY missing b
        SET a 1
        COPY a b
        COPY a b
        SET a 2
        COPY a b REPLACE
        GET b
        COPY a b replace REPLACE
        COPY a a
        COPY a a REPLACE
        COPY missing missing
        COPY a c DB 0
        GET c
        COPY a c DB 0 REPLACE
        COPY a c DB x
        COPY a c DB
        COPY a c DB 99
        COPY a c DB -1
        COPY a c BOGUS
        COPY missing c BOGUS
        SET a 1 EXAT 9999999999
        COPY a d
        EXPIRETIME d
        SET b 2 EXAT 8888888888
        SET a 1
        COPY a b REPLACE
        TTL b
        SET big @100000 EXAT 9999999999
        COPY big big2
        GET big2
        EXPIRETIME big2
        APPEND big x
        STRLEN big2
        DEL big
        GET big2
        COPY big2 a REPLACE
        STRLEN a
        SET small v
        COPY small a REPLACE
        GET a
        SET gone v PXAT 1
        COPY gone x
        EXISTS x
        SET gone v PXAT 1
        COPY small gone
        GET gone
        COPY a
        COPY
    """,
    "expire": """
        EXPIRE missing 100
        SET k v
        EXPIRE k 1000
        ~ PTTL k
        ~ TTL k
        ~ PEXPIRETIME k
        PEXPIRE k 1000000
        ~ PTTL k
        EXPIREAT k 9999999999
        EXPIRETIME k
        PEXPIRETIME k
        PEXPIREAT k 9999999999500
        EXPIRETIME k
        PEXPIRETIME k
        PEXPIREAT k 9999999999499
        EXPIRETIME k
        PERSIST k
        PERSIST k
        PERSIST missing
        TTL k
        PTTL k
        EXPIRETIME k
        PEXPIRETIME k
        TTL missing
        PTTL missing
        EXPIRETIME missing
        PEXPIRETIME missing
        EXPIREAT k 5000000000 NX
        EXPIREAT k 6000000000 NX
        EXPIREAT k 6000000000 XX
        EXPIREAT k 6000000000 GT
        EXPIREAT k 5999999999 GT
        EXPIREAT k 6000000001 GT
        EXPIREAT k 6000000001 LT
        EXPIREAT k 6000000002 LT
        EXPIREAT k 6000000000 LT
        EXPIREAT k 6000000000 XX GT
        EXPIREAT k 6000000005 XX GT
        EXPIREAT k 6000000004 XX LT
        EXPIREAT k 6000000004 LT LT
        EXPIRETIME k
        PERSIST k
        EXPIREAT k 6000000000 XX
        EXPIREAT k 6000000000 GT
        EXPIREAT k 6000000000 XX LT
        EXPIREAT k 6000000000 LT
        EXPIRETIME k
        PEXPIREAT k 6000000000001 GT
        PEXPIRETIME k
        EXPIRE k 100 NX XX
        EXPIRE k 100 NX GT
        EXPIRE k 100 NX LT
        EXPIRE k 100 GT LT
        EXPIRE k 100 BOGUS
        EXPIRE k 100 nx bogus
        EXPIRE k 100 "a b\\r\\nc"
        EXPIRE k 100 ""
        EXPIRE k x
        EXPIRE k x BOGUS
        EXPIRE k x NX XX
        EXPIRE missing x
        EXPIRE k 1.5
        EXPIRE k 9223372036854775807
        EXPIRE k 9223372036854775
        EXPIRE k -9223372036854775808
        EXPIREAT k 9223372036854775807
        PEXPIRE k 9223372036854775807
        PEXPIRE k -9223372036854775809
        PEXPIREAT k 9223372036854775807
        PEXPIRETIME k
        EXPIRETIME k
        ~ PTTL k
        ~ TTL k
        PERSIST k
        SET k v
        EXPIRE k 0
        EXISTS k
        SET k v
        EXPIRE k -1
        EXISTS k
        SET k v
        PEXPIRE k -1
        EXISTS k
        SET k v
        EXPIREAT k 1
        EXISTS k
        SET k v
        PEXPIREAT k 0
        EXISTS k
        SET k v
        PEXPIREAT k -1000
        EXISTS k
        SET k v
        PEXPIRE k -9223372036854775808
        EXISTS k
        SET k v
        EXPIREAT k 1 NX
        EXISTS k
        SET k v EXAT 9999999999
        EXPIREAT k 1 GT
        EXISTS k
        EXPIREAT k 1 LT
        EXISTS k
        SET k v
        EXPIREAT k 1 XX
        EXISTS k
        SET big @100000
        EXPIRE big 1000
        ~ TTL big
        GET big
        PERSIST big
        GET big
        EXPIREAT big 1
        GET big
        SET k v PXAT 1
        TTL k
        SET k v PXAT 1
        PTTL k
        SET k v PXAT 1
        EXPIRETIME k
        SET k v PXAT 1
        PERSIST k
        SET k v PXAT 1
        EXPIRE k 100
        EXPIRE
        EXPIRE k
        PEXPIRE k
        EXPIREAT k
        PEXPIREAT k
        TTL
        TTL a b
        PTTL
        EXPIRETIME
        PEXPIRETIME
        PERSIST
        PERSIST a b
    """,
    "object memory": """
        OBJECT ENCODING missing
        OBJECT REFCOUNT missing
        OBJECT IDLETIME missing
        OBJECT FREQ missing
        SET k 12345678
        OBJECT ENCODING k
        SET k 12345678901234567890
        OBJECT ENCODING k
        SET k @44
        OBJECT ENCODING k
        SET k @45
        OBJECT ENCODING k
        SET k ""
        OBJECT ENCODING k
        SET k -1
        OBJECT ENCODING k
        SET k 01
        OBJECT ENCODING k
        SET k @70000
        OBJECT ENCODING k
        SET k notshared
        OBJECT REFCOUNT k
        OBJECT IDLETIME k
        OBJECT FREQ k
        OBJECT ENCODING
        OBJECT ENCODING k k
        OBJECT BOGUS k
        OBJECT BOGUS
        OBJECT
        ? OBJECT HELP
        OBJECT HELP x
        MEMORY USAGE missing
        ? MEMORY USAGE k
        ? MEMORY USAGE k SAMPLES 0
        ? MEMORY USAGE k SAMPLES 5
        MEMORY USAGE k SAMPLES -1
        MEMORY USAGE k SAMPLES x
        MEMORY USAGE k SAMPLES
        MEMORY USAGE k BOGUS 1
        MEMORY USAGE missing BOGUS 1
        MEMORY USAGE
        MEMORY
        MEMORY BOGUS
        ? MEMORY HELP
    """,
    "flush": """
        MSET a 1 b @70000
        FLUSHALL
        DBSIZE
        SET a 1
        FLUSHDB
        DBSIZE
        SET a 1
        FLUSHALL ASYNC
        EXISTS a
        SET a @70000
        FLUSHDB ASYNC
        EXISTS a
        SET a 1
        FLUSHALL SYNC
        EXISTS a
        FLUSHDB sync
        SET a 1
        FLUSHALL BOGUS
        FLUSHALL ASYNC SYNC
        FLUSHALL ASYNC ASYNC
        FLUSHDB BOGUS
        FLUSHDB SYNC BOGUS
        EXISTS a
    """,
    "ping echo select time": """
        PING
        PING hello
        PING ""
        PING "\\x00\\r\\n"
        PING @65536
        PING a b
        ping
        ECHO hello
        ECHO ""
        ECHO @65536
        ECHO @1000000
        ECHO
        ECHO a b
        SELECT 0
        SELECT x
        SELECT 1.5
        SELECT
        SELECT 0 1
        SELECT 9223372036854775808
        SELECT 4294967296
        ? TIME
        TIME x
    """,
    "unknown commands": """
        BOGUS
        BOGUS a
        BOGUS a b c
        bogus A "b c" ""
        BOGUS "a\\r\\nb"
        "" 
        "" a
        "BO\\r\\nGUS" x
        "a b" c
        BOGUS @200
        BOGUS @100 @100
        BOGUS @127 x y
        BOGUS @128 x
        @128 x
        @129 x
        @300
        BOGUS @70000
        @70000 x
        GETT k
        GE
    """,
    "hello": """
        HELLO x
        HELLO 1
        HELLO 4
        HELLO 99999999999999999999
        HELLO -1
        HELLO ""
        HELLO 2 BOGUS
        HELLO 3 BOGUS x
        HELLO 3 AUTH
        HELLO 3 AUTH default
        HELLO 3 AUTH nobody x
        HELLO 3 SETNAME
        HELLO 3 SETNAME "a b"
        CLIENT GETNAME
        PING
        ? HELLO
        ? HELLO 2
        ? HELLO 2 SETNAME conn
        CLIENT GETNAME
        ? HELLO 2 AUTH default x
        ? HELLO 2 AUTH default x SETNAME other
        CLIENT GETNAME
        GET missing
        ? HELLO 3
        GET missing
        CLIENT GETNAME
        ? HELLO
        GET missing
        HELLO 4
        GET missing
        ? HELLO 2
        GET missing
        HELLO BOGUS
        HELLO AUTH default x
    """,
    "auth reset": """
        AUTH
        AUTH x
        AUTH default
        AUTH default x
        AUTH nobody x
        AUTH a b c
        AUTH "" ""
        CLIENT SETNAME me
        RESET
        CLIENT GETNAME
        GET missing
        RESET x
        ? HELLO 3
        GET missing
        RESET
        GET missing
        CLIENT REPLY ON
    """,
    "client": """
        CLIENT
        CLIENT BOGUS
        CLIENT BOGUS x
        CLIENT GETNAME
        CLIENT SETNAME me
        CLIENT GETNAME
        CLIENT SETNAME ""
        CLIENT GETNAME
        CLIENT SETNAME "a b"
        CLIENT SETNAME "a\\n"
        CLIENT SETNAME "\\xe4"
        CLIENT SETNAME "~!"
        CLIENT GETNAME
        CLIENT GETNAME x
        CLIENT SETNAME
        CLIENT SETNAME a b
        ? CLIENT ID
        CLIENT ID x
        ? CLIENT INFO
        CLIENT INFO x
        ? CLIENT LIST
        CLIENT LIST TYPE
        CLIENT LIST TYPE bogus
        CLIENT LIST TYPE master
        CLIENT LIST TYPE pubsub
        ? CLIENT LIST TYPE normal
        ? CLIENT LIST TYPE NORMAL
        CLIENT LIST ID
        CLIENT LIST ID x
        CLIENT LIST ID 0
        CLIENT LIST ID -1
        CLIENT LIST ID 99999
        CLIENT LIST ID 99999 x
        CLIENT LIST BOGUS
        CLIENT LIST BOGUS x
        CLIENT LIST TYPE normal ID 99999
        CLIENT KILL
        CLIENT KILL 1.2.3.4:5
        CLIENT KILL bogus
        CLIENT KILL ID
        CLIENT KILL ID x
        CLIENT KILL ID 0
        CLIENT KILL ID -1
        CLIENT KILL ID 99999
        CLIENT KILL ADDR 1.2.3.4:5
        CLIENT KILL LADDR 1.2.3.4:5
        CLIENT KILL TYPE bogus
        CLIENT KILL TYPE master
        CLIENT KILL TYPE pubsub
        CLIENT KILL USER bogus
        CLIENT KILL SKIPME bogus
        CLIENT KILL BOGUS x
        CLIENT KILL BOGUS x y
        CLIENT KILL ID 99999 ADDR
        CLIENT KILL ID 99999 SKIPME yes
        CLIENT KILL ADDR 1.2.3.4:5 SKIPME no
        CLIENT KILL ID 99999 BOGUS x
        CLIENT REPLY
        CLIENT REPLY BOGUS
        CLIENT REPLY ON
        CLIENT REPLY ON x
        ? CLIENT HELP
    """,
    "command": """
        COMMAND BOGUS
        COMMAND COUNT x
        COMMAND INFO bogus
        COMMAND INFO bogus get bogus
        COMMAND INFO bogus|get
        COMMAND INFO config|bogus
        COMMAND INFO get
        COMMAND DOCS bogus
        COMMAND LIST BOGUS
        COMMAND LIST FILTERBY
        COMMAND LIST FILTERBY BOGUS
        COMMAND LIST FILTERBY BOGUS x
        COMMAND LIST FILTERBY MODULE x
        COMMAND LIST FILTERBY ACLCAT bogus
        COMMAND LIST FILTERBY PATTERN bogus
        COMMAND LIST FILTERBY PATTERN get
        COMMAND LIST FILTERBY PATTERN get x
        COMMAND LIST FILTERBY PATTERN
        % COMMAND LIST FILTERBY PATTERN *ttl
        % COMMAND LIST FILTERBY PATTERN GETE*
        % COMMAND LIST FILTERBY PATTERN config|*et
        COMMAND GETKEYS
        COMMAND GETKEYS get
        COMMAND GETKEYS get k
        COMMAND GETKEYS get k x
        COMMAND GETKEYS bogus k
        COMMAND GETKEYS ping
        COMMAND GETKEYS ping x
        COMMAND GETKEYS mget a b c
        COMMAND GETKEYS mset a 1 b 2
        COMMAND GETKEYS mset a 1 b
        COMMAND GETKEYS rename a b
        COMMAND GETKEYS copy a b replace
        COMMAND GETKEYS set k v ex 10
        COMMAND GETKEYS SET k v
        COMMAND GETKEYS object encoding k
        COMMAND GETKEYS object
        COMMAND GETKEYS object bogus k
        COMMAND GETKEYS memory usage k
        COMMAND GETKEYS config get x
        COMMAND GETKEYS del "" ""
        ? COMMAND
        ? COMMAND HELP
    """,
    "config": """
        CONFIG
        CONFIG BOGUS
        CONFIG GET
        CONFIG GET bogus
        CONFIG GET timeout
        CONFIG GET TIMEOUT
        CONFIG GET timeout timeout
        CONFIG GET proto-max-bulk-len
        CONFIG GET appendonly
        CONFIG GET tcp-keepalive
        % CONFIG GET time?ut bogus*
        CONFIG GET save
        CONFIG SET
        CONFIG SET timeout
        CONFIG SET timeout 10 hz
        CONFIG SET bogus 1
        CONFIG SET timeout x
        CONFIG SET timeout -1
        CONFIG SET timeout 99999999999
        CONFIG SET timeout 100
        CONFIG GET timeout
        CONFIG SET timeout 50 timeout 60
        CONFIG SET timeout 0 bogus 1
        CONFIG GET timeout
        CONFIG SET timeout 0
        CONFIG SET protected-mode maybe
        CONFIG SET tcp-backlog 1
        ? CONFIG SET maxmemory-samples 0
        ? CONFIG SET maxmemory 1x
        ? CONFIG SET proto-max-bulk-len 1
        CONFIG SET lfu-log-factor 20 lfu-decay-time 2
        % CONFIG GET lfu-*
        CONFIG SET lfu-log-factor 10 lfu-decay-time 1
        CONFIG RESETSTAT
        CONFIG RESETSTAT x
        CONFIG REWRITE
        CONFIG REWRITE x
        ? CONFIG HELP
    """,
    "info shutdown": """
        ? INFO
        ? INFO server
        ? INFO SERVER clients
        ? INFO all
        ? INFO everything
        ? INFO default
        INFO bogus
        ? INFO commandstats
        SHUTDOWN BOGUS
        SHUTDOWN NOSAVE SAVE
        SHUTDOWN ABORT
        SHUTDOWN ABORT NOW
        SHUTDOWN NOW ABORT
        SHUTDOWN NOSAVE ABORT
        SHUTDOWN NOSAVE BOGUS
    """,
}

WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def pattern(length):
    """`length` bytes in which every place is recognisable."""
    return (b"".join(b"%07d." % i for i in range(0, length, 8)))[:length]


def words(line):
    """The marker and the arguments of one line of a case."""
    marker = ""
    arguments = []
    for quoted, bare in WORD.findall(line):
        if not arguments and bare in ("~", "?", "%", "!"):
            marker = bare
        elif re.fullmatch(r"@\d+", bare):
            arguments.append(pattern(int(bare[1:])))
        else:
            text = bare or quoted
            arguments.append(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))
    return marker, arguments


def canonical(reply, marker):
    """What of a reply is compared."""
    if marker == "?":
        return reply.kind
    if marker == "%" and isinstance(reply.value, list):
        return (reply.kind, sorted((canonical(item, marker) for item in reply.value), key=repr))
    return reply


def same(ours, theirs, marker):
    if marker == "~" and ours.kind == theirs.kind == ":":
        return (ours.value < 0) == (theirs.value < 0) and abs(ours.value - theirs.value) <= NEAR
    if marker == "!":
        return (ours.kind == "-") == (theirs.kind == "-")
    return canonical(ours, marker) == canonical(theirs, marker)


def brief(reply):
    text = repr(reply)
    return text if len(text) < 400 else text[:200] + " ... " + text[-100:]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_replies(pair, name, version):
    ours, theirs = pair.connect()
    with ours, theirs:
        for connection in (ours, theirs):
            connection.value("FLUSHALL")
            connection.value("HELLO", version)
        wrong = []
        for line in CASES[name].strip().splitlines():
            marker, arguments = words(line)
            replies = ours.call(*arguments), theirs.call(*arguments)
            if not same(*replies, marker):
                wrong.append(f"{line.strip()}\n    moonpool {brief(replies[0])}\n"
                             f"    redis    {brief(replies[1])}")
        assert not wrong, "\n".join(["", *wrong])


def test_wrong_numbers_of_arguments(pair):
    """Every command both have, with fewer and more arguments than it takes."""
    ours, theirs = pair.connect()
    with ours, theirs:
        shared = set(ours.value("COMMAND", "LIST")) & set(theirs.value("COMMAND", "LIST"))
        assert len(shared) > 55
        wrong = []
        for name in sorted(shared - {b"shutdown"}):
            entry = plain(theirs.call("COMMAND", "INFO", name))[0]
            least, exact = abs(entry[1]), entry[1] > 0
            counts = [*range(1, least), *([least + 1, least + 5] if exact else [])]
            for count in counts:
                arguments = [name] + [b"a"] * (count - 1)
                replies = ours.call(*arguments), theirs.call(*arguments)
                assert replies[1].kind == "-"
                if replies[0] != replies[1]:
                    wrong.append(f"{arguments}: {replies}")
        assert not wrong, "\n".join(["", *wrong])


def test_quit(pair):
    for connection in pair.connect():
        with connection:
            connection.send(encode("PING") + encode("QUIT") + encode("PING"))
            assert connection.closed() == b"+PONG\r\n+OK\r\n"


def test_quit_takes_any_arguments(pair):
    for connection in pair.connect():
        with connection:
            connection.send(encode("QUIT", "now", "please"))
            assert connection.closed() == b"+OK\r\n"


def test_a_reply_is_compared_with_its_type():
    assert not same(Reply("$", None), Reply("*", None), "")
    assert not same(Reply(":", 1), Reply(":", 2), "")
    assert same(Reply(":", 100), Reply(":", 90), "~")
    assert not same(Reply(":", -1), Reply(":", 0), "~")
    assert words('~ SET "a\\x00b" @3') == ("~", [b"SET", b"a\x00b", b"000"])
