"""No message contains a secret."""

import pickle
import subprocess
import sys

import pytest

from pipeline.storage import Storage
from pipeline.storage.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pa%20ss@host/x.tar?X-Sig=abc%2F&b=c", "https://host/x.tar"),
        ("cannot open 's3://KEY:SECRET@bucket/a' now", "cannot open 's3://bucket/a' now"),
        ("http://a@b@host/x", "http://host/x"),
        ("two https://h/a?s=1 and https://h/b?s=2.", "two https://h/a and https://h/b"),
        ("s3://bucket/part-?.tar", "s3://bucket/part-?.tar"),
        ("hf://datasets/user/name@main/x.parquet", "hf://datasets/user/name@main/x.parquet"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("/data/what?=x", "/data/what?=x"),
    ],
)
def test_secrets_in_urls(text, expected):
    assert redact(text) == expected


def test_secrets_in_storage_options():
    options = {"key": "AKIA1234", "secret": "s3cr3t", "client_kwargs": {"aws_session_token": "tok3n", "region": "eu"}}
    storage = Storage(url="https://user:pw@host/folder?sig=abc", options=options)
    shown = f"{storage!r} {storage.redacted} {storage.joined('x')}"
    assert not any(secret in shown for secret in ("pw", "abc", "AKIA1234", "s3cr3t", "tok3n"))
    assert redact("403 for AKIA1234 with s3cr3t, tok3n in eu") == "403 for *** with ***, *** in eu"
    assert pickle.loads(pickle.dumps(storage)).options == options


def test_a_process_that_receives_a_storage_masks_its_secrets_too():
    sent = pickle.dumps(Storage(url="s3://bucket", options={"secret": "sent-s3cret"})).hex()
    code = (
        "import pickle; from pipeline.storage.redaction import redact\n"
        f"pickle.loads(bytes.fromhex('{sent}')); print(redact('with sent-s3cret'))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "with ***\n"


def test_secrets_in_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from/the+environment")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=abc;")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert redact("from/the+environment AccountKey=abc; eu-west-1") == "*** *** eu-west-1"
