"""Mutations of tools/mutation-test, which CI runs last: who changes a line they break is told here."""
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_mutation_fits_its_line():
    checked = subprocess.run([ROOT / "tools" / "mutation-test", "--applicable"],
                             capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
