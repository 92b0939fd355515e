"""Runs from bucket to bucket on Google's and Azure's stores, where their emulators are installed."""

from __future__ import annotations

import contextlib
import json

import pytest
from other_stores import Missing, azure_store, google_store
from runs import BOTH, label, label_differences

import jobs.status
import jobs.verify


@pytest.mark.parametrize("make", [google_store, azure_store])
# The clients cause these: adlfs gives aiohttp the bytes of a body, and closes its clients when they are collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_from_bucket_to_bucket(make, request, tmp_path):
    with contextlib.ExitStack() as after:
        try:
            store = after.enter_context(make())
        except Missing as missing:
            pytest.skip(str(missing))
        # These fixtures are made only if the test is not skipped.
        scene_tars, labelled = map(request.getfixturevalue, ("scene_tars", "labelled"))
        store.upload(scene_tars, "photographs", "in/tars")
        flags = ("--no-ray", *BOTH, "--storage-options", json.dumps(store.options))
        source, out = (f"{store.scheme}://{place}" for place in ("photographs/in/tars", "labels/out/run"))
        assert label(source, out, *flags) == 0
        store.download("labels", "out/run", tmp_path / "back")
        assert label_differences(tmp_path / "back", labelled) == []
        assert label(source, out, *flags) == 0, "a second run over what is there"
        for command in (jobs.status, jobs.verify):
            assert command.main([out, *flags[-2:]]) == 0
