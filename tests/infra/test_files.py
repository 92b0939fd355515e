from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import INFRA
from yamllint import linter
from yamllint.config import YamlLintConfig

RULES = YamlLintConfig(
    """
extends: default
rules:
  document-start: disable
  line-length: {max: 125}
"""
)
SECRETS = re.compile(r"AKIA[0-9A-Z]{16}|hf_\w{20}|-----BEGIN|\"type\": \"service_account\"|AccountKey=", re.IGNORECASE)
NAMED_SECRET = re.compile(
    r"(?i)^\W*\w*(password|secret_access_key|auth_token|hf_token|account_key)\w*\W*[:=]\s*[\w\"']"
)


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(INFRA)))
def test_yaml_is_clean(path: Path) -> None:
    problems = [f"{problem.line}: {problem.desc}" for problem in linter.run(path.read_text(), RULES)]
    assert problems == []


@pytest.mark.parametrize(
    "path", sorted(path for path in INFRA.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_no_file_contains_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not SECRETS.search(text)
    assert not re.search(r"^kind: Secret", text, flags=re.MULTILINE)
    assert [line for line in text.splitlines() if NAMED_SECRET.match(line)] == []
