"""Pods have a read-only root file system: Ray and a run write only to the volumes of the manifests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems, which needs root"),
]

READ_ONLY = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/home /mnt/tmp /mnt/cache
cp -r "$1" /mnt/tmp/in
mount --bind /mnt/tmp /tmp
mount -t tmpfs shm /dev/shm
mount -o remount,ro,bind /
cd /tmp
if touch /usr/written 2> /dev/null; then echo "the root file system is not read-only"; exit 1; fi
"$2" -m ray.scripts.scripts start --head --block --num-cpus=1 --port="$3" --include-dashboard=false \
  --dashboard-agent-listen-port 0 --object-store-memory=80000000 > /tmp/ray.log 2>&1 &
until [ -e /tmp/ray/ray_current_cluster ]; do sleep 0.2; kill -0 $!; done
"$2" -m jobs.label /tmp/in /tmp/out --model tiny --device cpu --workers 1:1 --address "127.0.0.1:$3"
ls /tmp/out/labels
"""
"""Arguments: a folder of images, Python, and a free port. The processes end with the namespace."""


def test_ray_and_a_run_write_only_to_volumes(scene_folder: Path, free_port: int) -> None:
    variables = {"HOME": "/mnt/home", "DIFFSEG_CACHE": "/mnt/cache/diffseg", "HF_HOME": "/mnt/cache/huggingface"}
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", READ_ONLY, "bash"]
    done = subprocess.run(
        [*line, scene_folder / "a", sys.executable, str(free_port)],
        env=environment() | variables | {"TMPDIR": "/tmp", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ".parquet" in done.stdout.splitlines()[-1]
