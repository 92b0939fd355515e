"""`--must-run` in tests/conftest.py, by which continuous integration notices skipped tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.browser
def test_in_the_body():
    pytest.skip("needs a program")

@pytest.fixture
def program():
    pytest.skip("needs a program")

@pytest.mark.browser
def test_in_a_fixture(program):
    pass

@pytest.mark.browser
@pytest.mark.skipif(True, reason="needs a program")
def test_by_a_mark():
    pass

@pytest.mark.browser
def test_that_runs():
    pass

@pytest.mark.metrics
def test_of_another_marker():
    pytest.skip("needs a program")
"""


@pytest.mark.parametrize(
    ("flags", "outcomes"),
    [([], "1 passed, 4 skipped"), (["--must-run", "browser"], "1 failed, 1 passed, 1 skipped, 2 errors")],
)
def test_a_skip_of_a_required_test_is_a_failure(flags: list[str], outcomes: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_programs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser\n  metrics\n")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags, str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    finished = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=540, check=False, env=variables
    )
    assert outcomes in finished.stdout, finished.stdout + finished.stderr
    assert finished.returncode == (1 if flags else 0)
    if flags:
        assert "test_in_the_body must run (--must-run browser), and was skipped" in finished.stdout
