"""`diffseg submit` to a job server behind a proxy, over HTTP and HTTPS, without a Ray."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray

from jobs import submit
from jobs.submission.http import InvalidHttpOption, http_options

URLS = ["s3://in/photos", "s3://out/labels", "--detach"]
ADMITTED = ["--headers", '{"X-Proxy-Key": "Bearer planted"}', "--cookies", '{"session": "planted-too"}']


class JobServer(BaseHTTPRequestHandler):
    """What Ray's job server answers to a submission, behind a proxy that wants a header and a cookie."""

    submitted: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        if self.headers["X-Proxy-Key"] != "Bearer planted" or self.headers["Cookie"] != "session=planted-too":
            self._answer(407, {"seen": [self.headers["X-Proxy-Key"], self.headers["Cookie"]]})
        else:
            self._answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": ""})

    def do_POST(self) -> None:
        self.submitted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200, {"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, address or headers of this machine; what the command sets or registers is removed again."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.storage.redaction._registered", set())
    JobServer.submitted.clear()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def address(server: ThreadingHTTPServer) -> list[str]:
    return ["--address", f"http://127.0.0.1:{server.server_port}"]


def test_headers_cookies_and_metadata_reach_the_job_server(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    about = [
        "--metadata",
        "team=vision",
        "--metadata",
        "author=a=b",
        "--job-name",
        "night run",
        "--submission-id",
        "n-1",
    ]
    assert submit.main([*URLS, *address, *ADMITTED, *about]) == 0
    (request,) = JobServer.submitted
    assert request["metadata"] == {"team": "vision", "author": "a=b", "job_name": "night run"}
    assert request["submission_id"] == "n-1"
    assert request["entrypoint"] == "diffseg label s3://in/photos s3://out/labels"
    text = "".join(capsys.readouterr())
    assert "diffseg status s3://out/labels, once the first worker" in text
    assert "planted" not in text


def test_headers_come_from_a_file_or_from_the_variable_of_ray(
    address: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my headers").write_text(ADMITTED[1])
    assert submit.main([*URLS, *address, "--headers", str(tmp_path / "my headers"), *ADMITTED[2:]]) == 0
    assert f"--headers \"$(cat '{tmp_path}/my headers')\" raysubmit_1" in capsys.readouterr().err
    monkeypatch.setenv("RAY_JOB_HEADERS", ADMITTED[1])
    assert submit.main([*URLS, *address, *ADMITTED[2:]]) == 0
    assert len(JobServer.submitted) == 2


def test_a_proxy_that_admits_nobody_is_named_and_no_secret_is_shown(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*URLS, *address, *ADMITTED[:2], "--cookies", '{"session": "planted-wrong"}']) == 1
    error = capsys.readouterr().err
    assert "407" in error
    assert "needs --headers or --cookies" in error
    assert "planted" not in error


def test_certificates_are_verified_with_the_ones_that_verify_names(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = self_signed_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address = ["--address", f"https://127.0.0.1:{server.server_port}"]
    assert submit.main([*URLS, *address, *ADMITTED]) == 1
    assert "--verify PATH" in capsys.readouterr().err
    assert submit.main([*URLS, *address, *ADMITTED, "--verify", str(certificate)]) == 0
    assert f"--verify {certificate} raysubmit_1" in capsys.readouterr().err
    with pytest.warns(match="Unverified HTTPS request"):
        assert submit.main([*URLS, *address, *ADMITTED, "--verify", "false"]) == 0


def self_signed_certificate(folder: Path) -> Path:
    """Write a file with a key and a certificate for 127.0.0.1."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = serialization.PrivateFormat.PKCS8
    key_text = key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(key_text + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("{planted", None, "true"), "--headers: expected a JSON object"),
        ((None, '["planted"]', "true"), "--cookies: expected a JSON object of texts"),
        ((None, '{"planted": 1}', "true"), "--cookies: expected a JSON object of texts"),
        (("no/such/file", None, "true"), "--headers: expected a JSON object .* a file that holds one"),
        ((None, None, "no/such/file"), "--verify no/such/file: expected true, false, or a file"),
    ],
)
def test_values_in_another_form_are_refused_without_showing_them(flags: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidHttpOption, match=message) as caught:
        http_options(*flags)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(("pair", "message"), [("team", "expected NAME=VALUE"), ("a=https://u:planted@h/", "a secret")])
def test_metadata_is_a_name_and_a_value_that_everybody_may_read(
    pair: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*URLS, "--address", "http://127.0.0.1:1", "--metadata", pair]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "planted" not in error
