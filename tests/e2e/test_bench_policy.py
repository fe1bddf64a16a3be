"""moonpool-bench policy: figures that can be worked out by hand, and the shape of its JSON."""
import json
import subprocess

from conftest import BUILD, DEADLINE_S, needs_tools

pytestmark = needs_tools
BENCH = BUILD / "tools" / "moonpool-bench"
POLICIES = ["allkeys-lru", "allkeys-lfu", "allkeys-s3fifo", "allkeys-prefix", "allkeys-random"]
OPTIMUM = "optimum (Belady)"


def measure(*arguments):
    done = subprocess.run([BENCH, "policy", "--json", "-", *map(str, arguments)],
                          capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_trace(path, requests):
    path.write_text("".join(json.dumps({"timestamp": i, "input_length": 512 * len(blocks),
                                        "output_length": 1, "hash_ids": blocks}) + "\n"
                            for i, blocks in enumerate(requests)))
    return path


def test_hits_of_a_small_trace(tmp_path):
    # Room for four blocks: LRU gives up 1 and 2 for 5 and 6, though 3 and 4 are useless without
    # them; the optimum passes 5 and 6 by.
    trace = write_trace(tmp_path / "trace.jsonl", [[1, 2, 3, 4], [5, 6], [1, 2, 3, 4]])
    for capacity in ["0.67", str(4 << 20)]:
        report = measure("--trace", trace, "--capacity", capacity, "--block-bytes", 1 << 20)
        rows = {row["policy"]: row for row in report["rows"]}
        assert list(rows) == POLICIES + [OPTIMUM]
        assert rows["allkeys-lru"]["capacity_blocks"] == 4
        assert rows["allkeys-lru"]["accesses"] == 10
        assert rows["allkeys-lru"]["prefix_hit"] == 0
        assert rows["allkeys-lru"]["block_hit"] == 0.2
        assert rows["allkeys-prefix"]["prefix_hit"] > 0
        assert rows["allkeys-prefix"]["block_hit"] == rows["allkeys-prefix"]["prefix_hit"]
        assert rows[OPTIMUM]["prefix_hit"] == rows[OPTIMUM]["block_hit"] == 0.4


def test_everything_hits_again_in_a_cache_with_room_for_all(tmp_path):
    trace = write_trace(tmp_path / "trace.jsonl", [[1, 2, 3]] * 4)
    for row in measure("--trace", trace, "--capacity", "1.0")["rows"]:
        assert row["block_hit"] == row["prefix_hit"] == 0.75


def test_the_default_is_the_servers(client):
    report = measure("--requests", 300, "--capacity", "0.05")
    assert report["mode"] == "policy"
    default, = [row["policy"] for row in report["rows"] if row["default"]]
    assert default == client.config_get("maxmemory-policy")["maxmemory-policy"]


def test_no_policy_beats_the_optimum_on_any_kind_of_trace():
    report = measure("--generate", "all", "--requests", 800, "--capacity", "0.05,0.2")
    best = {(row["trace"], row["capacity"]): row["block_hit"]
            for row in report["rows"] if row["policy"] == OPTIMUM}
    assert len(best) == 2 * len(report["traces"]) >= 20
    for row in report["rows"]:
        assert 0 <= row["prefix_hit"] <= row["block_hit"]
        assert row["block_hit"] <= best[row["trace"], row["capacity"]] + 1e-9, row["id"]


def test_the_learning_policy_is_never_clearly_worse():
    # Short traces, so more room for chance than the full-length tables have.
    report = measure("--generate", "all", "--requests", 6000, "--capacity", "0.05")
    hits = {(row["trace"], row["policy"]): row["prefix_hit"] for row in report["rows"]}
    for trace in report["traces"]:
        name = trace["name"]
        best = max(hits[name, policy] for policy in POLICIES if policy != "allkeys-prefix")
        assert hits[name, "allkeys-prefix"] >= 0.95 * best, name


def test_wrong_capacities_are_refused():
    for capacity in ["1.5", "0.0", "nonsense"]:
        done = subprocess.run([BENCH, "policy", "--requests", "100", "--capacity", capacity],
                              capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 1
        assert "moonpool-bench:" in done.stderr
