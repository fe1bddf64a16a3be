"""The direction of includes between folders, as the README has it."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]

# folder -> folders it may include, besides itself
ALLOWED = {
    "protocol": set(),
    "storage": {"protocol"},
    "gpu": {"protocol"},
    "rdma": {"protocol", "storage"},
    "server": {"protocol", "storage", "gpu", "rdma"},
    "client": {"protocol", "rdma", "gpu"},
    "tools": {"protocol", "storage", "client", "gpu", "rdma"},
    "tests": {"protocol", "storage", "server", "client", "tools", "gpu", "rdma"},
}
INCLUDE = re.compile(r'^\s*#include "([a-z_]+)/')


def sources():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.h", "*.cc", "*.cu"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [pathlib.Path(name) for name in listed if (ROOT / name).exists()]


def test_includes_follow_the_arrows():
    wrong = []
    for source in sources():
        folder = source.parts[0]
        for number, line in enumerate((ROOT / source).read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if match and match[1] in ALLOWED and match[1] != folder:
                if match[1] not in ALLOWED[folder]:
                    wrong.append(f"{source}:{number}: {folder} must not include {match[1]}")
    assert not wrong, "\n".join(wrong)


def test_every_source_is_in_a_known_folder():
    assert {source.parts[0] for source in sources()} <= set(ALLOWED)


def test_installed_headers_need_nothing_of_the_project():
    for header in (ROOT / "client" / "moonpool").iterdir():
        for line in header.read_text().splitlines():
            assert not line.startswith('#include "'), f"{header}: {line}"
