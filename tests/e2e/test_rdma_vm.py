"""RDMA for real: the tests that need devices, inside tools/rdma-vm, in as few boots as can be.

moonpool-rdma-vm-tests drives rdma/, moonpool-client-vm-tests libmoonpool and a real server.
"""
import json
import subprocess

import pytest

from conftest import BUILD, ROOT, sanitized

VM = ROOT / "tools" / "rdma-vm"
TESTS = BUILD / "tests" / "moonpool-rdma-vm-tests"
CLIENT_TESTS = BUILD / "tests" / "moonpool-client-vm-tests"
SERVER = BUILD / "server" / "moonpool-server"
BENCH = BUILD / "tools" / "moonpool-bench"
PEER = BUILD / "tests" / "moonpool-rdma-peer"
SET_UP = "tools/rdma-vm setup --backend uml"
# Of each executable, what is run over soft-iWARP too: what differs there, and values of every size.
IWARP = {TESTS: "VmHostile.*:VmTenants.*:VmMoves.*:VmSafety.NobodyListens:VmServer.W*:VmFailures.O*",
         CLIENT_TESTS: "VmClient.*:VmClientFailures.NoWrong*:VmClientFailures.Tokens*"}


def why_not():
    """Why the virtual machine cannot run this build; empty when it can."""
    # A User-Mode Linux process has no address space for sanitizers; emulation is too slow for all of it.
    if sanitized():
        return "builds with sanitizers do not run in the User-Mode Linux kernel"
    if not TESTS.exists():
        return "this build has no RDMA (see MOONPOOL_RDMA)"
    if subprocess.run([VM, "ready", "--backend", "uml"], check=False).returncode != 0:
        return f"the virtual machine is not set up: run {SET_UP}"
    return ""


def run_vm(folder, *command, options=(), seconds=240):
    return subprocess.run(
        [VM, "run", "--backend", "uml", "--timeout", str(seconds), *options, folder, "--", *command],
        capture_output=True, text=True, errors="replace", timeout=seconds + 30)


@pytest.fixture(scope="module", autouse=True)
def vm():
    reason = why_not()
    if reason:
        pytest.skip(reason)


def listed_tests(chosen):
    """Names of the tests in the executables, `chosen` by a filter of each; one when they cannot be
    asked, which is skipped then."""
    if why_not():
        return ["any"]
    names, suite = [], ""
    for tests, which in chosen.items():
        listed = subprocess.run([tests, "--gtest_list_tests", f"--gtest_filter={which}"],
                                capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            if line.endswith(".") and not line.startswith(" "):
                suite = line
            elif line.startswith("  "):
                names.append(suite + line.split("#")[0].strip())
    return [name for name in names if not name.startswith("VmOtherHost.")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each test said.  A link that went down leaves its device useless: last, in a boot for each."""
    folder = tmp_path_factory.mktemp("vm")
    first = (f"{TESTS} --gtest_filter=-VmLinkFailure.* --gtest_output=json:rdma.json;"
             f"{CLIENT_TESTS} --gtest_filter=-VmClientLinkFailure.*:VmOtherHost.* "
             "--gtest_output=json:client.json;"
             f"{TESTS} --gtest_filter=VmLinkFailure.* --gtest_output=json:rdma-link.json")
    last = f"{CLIENT_TESTS} --gtest_filter=VmClientLinkFailure.* --gtest_output=json:client-link.json"
    said = ""
    for script in (first, last):
        ran = run_vm(folder, "bash", "-c", script, options=("--nics", "2", "--share", str(BUILD)),
                     seconds=900)
        said += f"({ran.returncode})\n{ran.stdout[-3000:]}\n{ran.stderr[-1000:]}"
    return cases_of(folder, ("rdma.json", "client.json", "rdma-link.json", "client-link.json"), said)


@pytest.fixture(scope="module")
def iwarp_results(tmp_path_factory):
    """The same of some of them over soft-iWARP."""
    folder = tmp_path_factory.mktemp("siw")
    script = ";".join(f"{tests} --gtest_filter={which} --gtest_output=json:{tests.name}.json"
                      for tests, which in IWARP.items())
    ran = run_vm(folder, "bash", "-c", script,
                 options=("--siw", "--nics", "2", "--share", str(BUILD)), seconds=600)
    said = f"({ran.returncode})\n{ran.stdout[-3000:]}\n{ran.stderr[-1000:]}"
    return cases_of(folder, [f"{tests.name}.json" for tests in IWARP], said)


def cases_of(folder, reports, said):
    """By name, what the reports in the folder tell; `said` is shown when one is missing."""
    cases = {}
    for name in reports:
        try:
            report = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            pytest.fail(f"the tests died in the virtual machine: no {name}; {said}")
        for suite in report["testsuites"]:
            for case in suite["testsuite"]:
                if case.get("result") != "SUPPRESSED":
                    cases[f"{suite['name']}.{case['name']}"] = case
    return cases


@pytest.mark.parametrize("name", listed_tests({TESTS: "*", CLIENT_TESTS: "*"}))
def test_in_vm(results, name):
    check(results[name])


@pytest.mark.parametrize("name", listed_tests(IWARP))
def test_in_vm_over_iwarp(iwarp_results, name):
    check(iwarp_results[name])


def check(case):
    if case.get("result") == "SKIPPED":
        pytest.skip("as it said itself")
    assert "failures" not in case, "\n".join(f["failure"] for f in case["failures"])
    assert case["result"] == "COMPLETED"


def test_exit_status_and_shared_folder(tmp_path):
    ran = run_vm(tmp_path, "bash", "-c", "echo written > file; exit 7")
    assert ran.returncode == 7, ran.stderr
    assert (tmp_path / "file").read_text() == "written\n"


def test_two_devices_that_are_up(tmp_path):
    ran = run_vm(tmp_path, "bash", "-c", "ibv_devinfo | grep -c PORT_ACTIVE; echo $RDMA_ADDRS",
                 options=("--nics", "2"))
    assert ran.stdout.split() == ["2", "10.77.0.1", "10.77.1.1"], ran.stdout + ran.stderr


def test_two_guests_on_a_wire(tmp_path):
    # The first serves a value, the second reads it until it has had it once, and says so.
    script = f"""
        if [ $RDMA_RANK = 0 ]; then
            {PEER} serve 1 5 > told & server=$!
            until [ -e done ]; do sleep 0.05; done
            kill $server; exit 0
        fi
        until [ "$(wc -l < told 2>/dev/null)" = 14 ]; do sleep 0.05; done
        mapfile -t t < told
        coproc {PEER} read "${{t[0]}}" 1 5 "${{t[1]}}" "${{t[2]}}" "${{t[@]:9}}"
        read -r line <&${{COPROC[0]}}; echo "it says: $line"; kill $COPROC_PID; touch done"""
    ran = run_vm(tmp_path, "bash", "-c", script, options=("--vms", "2", "--share", str(BUILD)))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "[1] it says: reading" in ran.stdout, ran.stdout + ran.stderr


def test_a_client_of_another_guest(tmp_path):
    # Auto finds no shared memory there, and takes RDMA.
    script = f"""
        if [ $RDMA_RANK = 0 ]; then
            {SERVER} --bind $RDMA_ADDR --port 6390 --protected-mode no --maxmemory 128mb > log 2>&1 & server=$!
            until [ -e done ]; do sleep 0.05; done
            kill $server; wait $server
        else
            MOONPOOL_URL="moonpool://$RDMA_PEER_ADDR:6390" \\
                {CLIENT_TESTS} --gtest_filter=VmOtherHost.* --gtest_brief=1; status=$?
            touch done; exit $status
        fi"""
    ran = run_vm(tmp_path, "bash", "-c", script, options=("--vms", "2", "--share", str(BUILD)))
    assert ran.returncode == 0, ran.stdout + ran.stderr + (tmp_path / "log").read_text()
    assert "PASSED  ] 1 test" in ran.stdout, ran.stdout + ran.stderr


def test_bench(tmp_path):
    ran = run_vm(tmp_path, BENCH, "rdma", "--quick", "--reps", "1", "--rows", "get-|server-cpu|recovery",
                 "--fail-nic", "rig1", "--json", "report.json",
                 options=("--nics", "2", "--share", str(BUILD)), seconds=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["id"] for row in report["rows"]] == ["get-1m", "get-4k", "server-cpu", "recovery"]
    # How far is for whoever reads the figures; that it works at all is for a test.
    # What the server's processor spends may be less than its clock sees.
    assert all(row["ours"] > 0 for row in report["rows"][:2])
