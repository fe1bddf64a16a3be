"""moonpool-bench: a mode runs, and its JSON and its table say the same."""
import json
import os
import subprocess

import pytest

from conftest import BUILD, DEADLINE_S, needs_tools

pytestmark = needs_tools
BENCH = BUILD / "tools" / "moonpool-bench"


def bench(*words):
    return subprocess.run([str(BENCH), *map(str, words)], text=True, timeout=3 * DEADLINE_S,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ssd(tmp_path):
    ended = bench("ssd", "--quick", "--rows", "restart-keys", "--directory", tmp_path,
                  "--json", "-")
    if "give --directory on a disk" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["mode"] == "ssd"
    [row] = report["rows"]
    assert row["id"] == "restart-keys"
    assert row["ours"] == 1
    assert row["verdict"] == "aim"
    assert "keys served after a clean restart" in ended.stderr
    assert os.listdir(tmp_path) == []  # nothing is left behind


def test_replay():
    ended = bench("replay", "--requests", "40", "--transport", "shm,tcp", "--json", "-")
    assert ended.returncode == 0, ended.stderr
    figures = {row["name"]: row["ours"] for row in json.loads(ended.stdout)["rows"]}
    for transport in ("shm", "tcp"):
        for operation in ("read", "write"):
            assert figures[f"{transport}: {operation} over {transport}"] > 0
        for trouble in ("errors", "wrong blocks", "fallbacks"):
            assert figures[f"{transport}: {trouble}"] == 0


def test_ssd_refuses_memory():
    ended = bench("ssd", "--quick", "--rows", "restart-keys", "--directory", "/dev/shm")
    assert ended.returncode == 1
    assert "is tmpfs, in memory" in ended.stderr


def test_gpu_server_without_a_gpu():
    listed = bench("gpu-server", "--list")
    assert listed.returncode == 0
    assert "pull-1m\t" in listed.stdout
    # None is visible, whatever the machine has; with one, tools/gpu-check measures.
    ended = subprocess.run([str(BENCH), "gpu-server", "--quick"], text=True, timeout=DEADLINE_S,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert ended.returncode == 1
    assert "gpu-server measures nothing: " in ended.stderr
