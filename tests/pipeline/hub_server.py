"""A stand-in for the Hugging Face Hub: data sets in memory behind the requests that an upload makes."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

COMMIT = "0" * 40


class HubHandler(BaseHTTPRequestHandler):
    """Answers requests to create a data set, to list its files, to commit some, and to read one."""

    protocol_version = "HTTP/1.1"
    data_sets: ClassVar[defaultdict[str, dict[str, bytes]]]
    commits: ClassVar[list[str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            assert asked.get("private") or asked.get("visibility") == "private"
            self._answer({"url": f"http://{self.headers['Host']}/datasets/me/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            header, *operations = (json.loads(line) for line in body.splitlines())
            self.commits.append(header["value"]["summary"])
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "deletedFile":
                    del self._files()[value["path"]]
                else:
                    self._files()[value["path"]] = base64.b64decode(value["content"])
            self._answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/datasets/me/set/commit/{COMMIT}",
                }
            )
        elif "/validate-yaml" in self.path:
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({}, status=404)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in self._files().items()
            ]
            self._answer(entries)
        elif "/resolve/" in self.path:
            self._send_file()
        else:
            self._answer({"id": "me/set", "sha": COMMIT, "private": True})

    def do_HEAD(self) -> None:
        self._send_file()

    def _files(self) -> dict[str, bytes]:
        match = re.search(r"/datasets/([^/]+/[^/]+)/", self.path)
        assert match is not None, self.path
        return self.data_sets[match[1]]

    def _send_file(self) -> None:
        data = self._files()[self.path.rpartition("/")[2]]
        self._answer(data, headers={"ETag": f'"{hash(data)}"', "X-Repo-Commit": COMMIT})

    def _answer(self, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        """Print nothing."""
