"""Print the sizes of the wheels in each layer of the image, as PyPI states them, without downloading one.

It needs uv (`pip install uv`), which resolves constraints.txt for the Python and the platform of the image.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tomllib

CLOUD_CLIENTS = ("boto3", "google-api-python-client")
"""Packages that the Dockerfile adds to the requirements of the project."""


def wheel_sizes(requirements: list[str]) -> dict[str, int]:
    """Return the bytes of the wheel of each package that pip would install, the largest one if several wheels fit."""
    command = "uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28"
    flags = ["-c", "constraints.txt", "--format", "pylock.toml", "-"]
    lock = subprocess.run(
        [*command.split(), *flags], input="\n".join(requirements), capture_output=True, text=True, check=True
    ).stdout
    packages = tomllib.loads(lock)["packages"]
    return {package["name"]: max(wheel["size"] for wheel in package["wheels"]) for package in packages}


def main() -> None:
    """Print the layers and, for each, its largest wheels."""
    printed = [sys.executable, "infra/requirements.py", "s3", "gcs", "azure", "plots", "gpu"]
    project = subprocess.run(printed, capture_output=True, text=True, check=True).stdout.splitlines()
    torch = wheel_sizes(["torch"])
    others = {
        name: size for name, size in wheel_sizes(["torch", *project, *CLOUD_CLIENTS]).items() if name not in torch
    }
    files = [path for name in ("diffseg", "pipeline", "jobs") for path in Path(name).rglob("*.*")]
    code = sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)
    for title, sizes in (
        ("torch and CUDA", torch),
        ("other packages", others),
        ("this package, unpacked", {"code": code}),
    ):
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        print(f"{title}: {sum(sizes.values()) / 1e6:,.0f} MB in {len(sizes)} wheels")
        print(*(f"  {name} {sizes[name] / 1e6:,.0f} MB" for name in largest), sep="\n")


if __name__ == "__main__":
    main()
