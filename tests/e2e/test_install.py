"""libmoonpool alone: built without the server, installed, and used from outside the source tree."""
import os
import subprocess

import pytest

from conftest import DEADLINE_S, ROOT

EXAMPLE = ROOT / "client" / "example" / "example.cc"
PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(outside LANGUAGES CXX)
find_package(moonpool 0.1 REQUIRED)
add_executable(example example.cc)
target_link_libraries(example PRIVATE moonpool::moonpool)
"""


def run(*command, cwd, **environment):
    ended = subprocess.run([str(word) for word in command], cwd=cwd, text=True, timeout=3 * DEADLINE_S,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           env={**os.environ, **environment})
    assert ended.returncode == 0, f"{command} in {cwd}:\n{ended.stdout}"
    return ended.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where the library is installed."""
    folder = tmp_path_factory.mktemp("install")
    run("cmake", "--preset", "client", "-B", folder / "build", cwd=ROOT)
    run("cmake", "--build", folder / "build", cwd=ROOT)
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix", cwd=ROOT)
    return folder / "prefix"


@pytest.fixture
def outside(tmp_path):
    """A folder that knows of the project only what is installed."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "example.cc").write_text(EXAMPLE.read_text())
    return folder


def check(example, server, **environment):
    said = run(example, f"moonpool://127.0.0.1:{server.port}", cwd=example.parent, **environment)
    assert "over shm" in said and "in place, verified" in said, said


def library_folder(prefix):
    return next(prefix.glob("lib*/**/libmoonpool.so")).parent


def test_only_the_library_and_its_headers_are_installed(prefix):
    headers = [path.name for path in (prefix / "include").rglob("*") if path.is_file()]
    assert sorted(headers) == ["client.h", "gpu.h"]
    assert not (prefix / "bin").exists()


def test_find_package(prefix, outside, server):
    (outside / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-G", "Ninja", "-S", outside, "-B", outside / "build",
        f"-DCMAKE_PREFIX_PATH={prefix}", cwd=outside)
    run("cmake", "--build", outside / "build", cwd=outside)
    check(outside / "build" / "example", server)


def test_pkg_config(prefix, outside, server):
    flags = run("pkg-config", "--cflags", "--libs", "moonpool", cwd=outside,
                PKG_CONFIG_PATH=str(library_folder(prefix) / "pkgconfig")).split()
    run("g++", "-std=c++20", "example.cc", "-o", "example", *flags, cwd=outside)
    check(outside / "example", server, LD_LIBRARY_PATH=str(library_folder(prefix)))
