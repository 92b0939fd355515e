"""The data files of the page. They are scripts, because a page opened from disk can load scripts but no JSON."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The folder below OUT with the data of one page.

    Attributes:
        out: OUT of the run.
        path: Path of the folder below OUT.
    """

    out: Storage
    path: str

    def write(self, name: str, value: Any) -> None:
        """Write a script that passes `value` to the page under `name`."""
        # ASCII JSON is valid JavaScript whatever the strings contain, and none of it is parsed as HTML.
        self.put(f"{name}.js", f"reportData({json.dumps(name)},{json.dumps(value, separators=(',', ':'))})\n")

    def put(self, name: str, text: str) -> None:
        """Write a file of the folder."""
        put_text(self.out, f"{self.path}/{name}", text)


def put_text(out: Storage, path: str, text: str) -> None:
    """Write a text file below OUT.

    The local file keeps the name, because object stores derive the content type from the extension.
    """
    with tempfile.TemporaryDirectory(prefix="diffseg-report-") as folder:
        local = os.path.join(folder, os.path.basename(path))
        with open(local, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        out.write_file(path, local)
