"""Report pages that tests read back: the command, the data files, and the maps of regions."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import jobs.report

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&amp;\u2028\u202e.png'
STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


def report(out: Path | str, *flags: str) -> int:
    """Write the page of a run in this process, and return the exit code."""
    return jobs.report.main([str(out), "--processes", "1", *flags])


def data_of(out: Path) -> dict[str, Any]:
    """Return the contents of the data files by name."""
    data = {}
    for path in out.glob("report/data/*/*.js"):
        match = re.fullmatch(r'reportData\("([a-z0-9-]+)",(.*)\)\n', path.read_text(), re.DOTALL)
        if match:
            data[match[1]] = json.loads(match[2])
    return data


def regions_of(picture: dict[str, Any]) -> np.ndarray:
    """Return the map of regions of a picture, uint8 [H, W]."""
    width, height = picture["pixels"]
    return np.frombuffer(zlib.decompress(base64.b64decode(picture["regions"])), np.uint8).reshape(height, width)
