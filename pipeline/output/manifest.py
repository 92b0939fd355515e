"""run.json: what a run was asked to do, and the guard against mixing two runs in one OUT."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.digest import short_digest
from pipeline.errors import RunRefused
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

PATH = "run.json"
PROGRESS_PATH = "progress.json"
PACKAGES = ("diffseg-pipeline", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow", "webdataset", "ray")
RUN_FOLDERS = ("labels", "webdataset", "commits", "failures", "report")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of run.json.

    source: SRC, without secrets. settings: LabelSettings as plain values. model_sha256: of the checkpoint's files.
    resolved: what the checkpoint filled in: tau, timestep, resolution, method. environment: batch size, threads, device
    kind and versions, which may change a float's last bits. shards: how many SRC had when the run was started last.
    """

    source: str
    settings: Mapping[str, Any]
    model_sha256: str
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]
    fingerprint: str
    shards: int = 0


def fingerprint_of(settings: LabelSettings, model_sha256: str, resolved: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the settings that determine the labels; where the model lies does not count."""
    places = {"model": model_sha256, "revision": None, "vae": None, "clip": None, "affinity": None}
    plain = dataclasses.asdict(settings) | places | {"resolved": dict(resolved)}
    return short_digest(json.dumps(plain, sort_keys=True))


def versions() -> dict[str, str]:
    """Of Python and of the packages that touch pixels or bytes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "unknown"
    return found


def read_manifest(out: Storage) -> Manifest | None:
    """The run.json of OUT, None where there is none. Raises RunRefused where it cannot be read."""
    try:
        data = out.read_bytes(PATH)
    except FileNotFoundError:
        return None
    try:
        return Manifest(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise RunRefused(f"{out.joined(PATH)}: is not a run record of this program ({error})") from error


def write_manifest(out: Storage, manifest: Manifest) -> None:
    """Put run.json in place."""
    out.write_bytes(PATH, _text(manifest))


def create_manifest(out: Storage, manifest: Manifest) -> bool:
    """Put run.json in place unless another run has just done so; whether it was put."""
    return out.create_bytes(PATH, _text(manifest))


def _text(manifest: Manifest) -> bytes:
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode() + b"\n"


def check_same_run(before: Manifest, now: Manifest, out: Storage) -> list[str]:
    """Differences that may change the last bits of a float, to be told to the user.

    Raises RunRefused where the source or a setting differs, naming both values.
    """
    ours, theirs = _flat(now), _flat(before)
    if before.fingerprint == now.fingerprint:  # the same model may lie elsewhere
        ours, theirs = ({"source": m.source} for m in (now, before))
    differing = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    if differing:
        lines = [f"  {name}: {theirs.get(name)!r} there, {ours.get(name)!r} now" for name in differing]
        raise RunRefused(
            f"{out.redacted} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "Choose another OUT, the same settings, or --overwrite to delete that run and start over"
        )
    names = sorted(set(before.environment) | set(now.environment))
    pairs = [(name, before.environment.get(name), now.environment.get(name)) for name in names]
    return [f"{name}: {there!r} before, {here!r} now" for name, there, here in pairs if there != here]


def _flat(manifest: Manifest) -> dict[str, Any]:
    plain = json.loads(json.dumps(dataclasses.asdict(manifest)))
    flat = {"source": plain["source"], "model_sha256": plain["model_sha256"]}
    groups = ("method", "naming")
    flat |= {k: v for k, v in plain["settings"].items() if k not in groups}
    for group in groups:
        flat |= plain["settings"].get(group, {})
    return flat | {f"resolved {k}": v for k, v in plain["resolved"].items()}


def clear_run(out: Storage) -> None:
    """Delete what a run left, commit records first, so that a half-deleted run is never taken for a done one."""
    for path in (PATH, PROGRESS_PATH):
        out.delete(path)
    for folder in sorted(RUN_FOLDERS):
        for path, _ in out.files(folder):
            out.delete(path)
