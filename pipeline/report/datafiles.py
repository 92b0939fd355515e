"""Data that the page asks for, as scripts: from a disk a browser runs a script, and reads no JSON."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """A folder below OUT for the data of one page."""

    out: Storage
    path: str

    def write(self, name: str, value: Any) -> None:
        """A script that hands `value` to the page under `name`."""
        # JSON in ASCII is JavaScript, whatever the keys hold: they are data there, and never HTML.
        self.put(f"{name}.js", f"reportData({json.dumps(name)},{json.dumps(value, separators=(',', ':'))})\n")

    def put(self, name: str, text: str) -> None:
        """A file of the folder."""
        put_text(self.out, f"{self.path}/{name}", text)


def put_text(out: Storage, path: str, text: str) -> None:
    """Write a text below OUT, so that a store that tells browsers what a file is sees its extension."""
    with tempfile.TemporaryDirectory(prefix="diffseg-report-") as folder:
        local = os.path.join(folder, os.path.basename(path))
        with open(local, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        out.write_file(path, local)
