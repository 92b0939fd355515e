from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import INFRA, LAUNCHERS, OVERLAYS, ROOT, cluster, commands, container, launcher, overlay, pods

DOCKERFILE = INFRA / "Dockerfile"
PYPROJECT = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    """Return the versions that constraints.txt pins for this Python or a newer one."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line and "< " not in line)


def instructions(name: str) -> list[str]:
    """Return the arguments of each occurrence of an instruction in the Dockerfile."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, flags=re.MULTILINE)


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("needs hadolint, whose wheel exists only for Linux on x86-64")
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_packages_belong_to_root_and_the_user_is_unprivileged() -> None:
    last = DOCKERFILE.read_text().split("\nFROM python\n")[-1]
    steps = re.findall(r"^(RUN|USER) +(.*)$", last.replace("\\\n", " "), flags=re.MULTILINE)
    assert [name for name, _ in steps] == ["RUN", "RUN", "RUN", "USER"]
    assert all("pip install" in text and "chown" not in text for _, text in steps[:-1])
    assert instructions("USER") == ["1000:1000"]


def test_bases_are_pinned_and_can_be_replaced_by_their_digests() -> None:
    defaults = dict(line.split("=", 1) for line in instructions("ARG"))
    stages = {line.split(" AS ")[-1] for line in instructions("FROM")}
    for base in (line.split()[0] for line in instructions("FROM")):
        argument = re.fullmatch(r"\$\{(\w+_BASE)\}", base)
        assert base in stages or base == "base-${VARIANT}" or argument
        assert not argument or re.fullmatch(r"[\w/]+:[\w.-]*\d[\w.-]*", defaults[argument[1]])
    guide = (ROOT / "docs" / "cluster.md").read_text()
    for name, default in defaults.items():
        if name.endswith("_BASE"):
            assert f"imagetools inspect {default}" in guide
            assert f"--build-arg {name}={default.split(':')[0]}@sha256:" in guide


def test_both_variants_have_the_python_that_the_guide_states() -> None:
    (version,) = [line.split("=")[1] for line in instructions("ARG") if line.startswith("PYTHON_VERSION")]
    assert '"${PYTHON_VERSION}"' in DOCKERFILE.read_text()
    assert f"Python {version}" in (ROOT / "docs" / "cluster.md").read_text()


def test_the_builder_receives_exactly_the_files_that_are_copied() -> None:
    lines = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for line in instructions("COPY") for word in line.split()[:-1] if not word.startswith("--")}
    mounted = {name for line in instructions("RUN") for name in re.findall(r"type=bind,source=([^,]+)", line)}
    assert sent == copied | mounted
    assert all((ROOT / name).exists() for name in sent)


def test_the_image_has_the_requirements_of_the_project() -> None:
    line = [sys.executable, INFRA / "requirements.py", "s3", "gcs", "azure", "plots", "gpu"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert printed == [*PYPROJECT["dependencies"], "s3fs", "gcsfs", "adlfs", "matplotlib>=3.8", "nvidia-ml-py>=12.560"]
    assert {re.split("[<>=]", name)[0] for name in printed[-5:]} <= pins().keys()


def test_versions_are_the_same_everywhere() -> None:
    docker = [launcher(path)["docker"] for path in LAUNCHERS]
    assert all(each["head_image"] == f"{each['image']}-cpu" for each in docker)
    images = {each["image"] for each in docker}
    prepull = yaml.safe_load((INFRA / "kuberay" / "prepull" / "daemonset.yaml").read_text())
    images |= {each["image"] for each in prepull["spec"]["template"]["spec"]["initContainers"]}
    for name in OVERLAYS:
        assert cluster(overlay(name))["rayVersion"] == pins()["ray"]
        images.add(container(pods(overlay(name))["head"])["image"].removesuffix("-cpu"))
    assert images == {f"registry.example.com/diffseg:{PYPROJECT['version']}"}
    assert images <= set(re.findall(r"-t (\S+)", DOCKERFILE.read_text()))


def test_the_image_has_the_client_of_each_cloud_for_its_autoscaler() -> None:
    """The user of a container cannot install it there."""
    assert [line for line in commands() if line.words[0] == "pip"] == []
    installed = " ".join(line for line in instructions("RUN") if "requirements.txt" in line).split()
    assert {"boto3", "google-api-python-client"} <= set(installed) & pins().keys()


def test_the_sizes_of_layers_are_those_of_the_wheels_that_uv_finds(tmp_path: Path) -> None:
    """A stand-in for uv answers, because the real one asks PyPI."""
    lock = """cat <<'LOCK'
lock-version = "1.0"
[[packages]]
name = "torch"
wheels = [{ url = "a", size = 5000000 }, { url = "b", size = 9000000 }]
LOCK
grep -q s3fs && cat <<'LOCK'
[[packages]]
name = "s3fs"
wheels = [{ url = "c", size = 3000000 }]
LOCK
true
"""
    (tmp_path / "uv").write_text(f"#!/bin/sh\n{lock}")
    (tmp_path / "uv").chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = [sys.executable, INFRA / "layer_sizes.py"]
    printed = subprocess.run(
        line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert printed.startswith("torch and CUDA: 9 MB in 1 wheels\n  torch 9 MB\nother packages: 3 MB in 1 wheels\n")
