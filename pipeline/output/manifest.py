"""run.json: what a run was asked to do, and the guard against mixing two runs in one OUT."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.bounded_json import InvalidFile, parse_json, read_bounded, struct_fields
from pipeline.digest import short_digest
from pipeline.errors import RunRefused
from pipeline.output.schemas import DOCUMENT_BYTES, parse_manifest
from pipeline.readers.samples import shorten
from pipeline.settings import LabelSettings
from pipeline.storage import SourceError, Storage

PATH = "run.json"
PROGRESS_PATH = "progress.json"
PACKAGES = ("diffseg-pipeline", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow", "webdataset", "ray")
"""Packages whose versions may change pixels or bytes."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of run.json.

    Attributes:
        source: SRC, without secrets.
        settings: `LabelSettings` as plain values.
        model_sha256: Digest of the checkpoint's files.
        resolved: Values that the checkpoint filled in: tau, timestep, resolution and method.
        environment: Batch size, threads, device kind and versions, which may change the last bits of a float.
        fingerprint: Digest of everything that determines the labels; see `fingerprint_of`.
        shards: Number of shards of SRC when the run was last started.
        listing: Digest of these shards and their inputs; see `pipeline.output.listing`. "" if they were not recorded.
        left_out: What SRC holds besides these shards, by kind; see `pipeline.readers.left_out`.
    """

    source: str
    settings: Mapping[str, Any]
    model_sha256: str
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]
    fingerprint: str
    shards: int = 0
    listing: str = ""
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def fingerprint_of(settings: LabelSettings, model_sha256: str, resolved: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits for the settings that determine the labels; the model's location is not one."""
    added = [name for name in ("network", "references") if getattr(settings, name) is not None]
    locations = ("revision", "vae", "clip", "affinity", *added)
    plain = settings.plain() | dict.fromkeys(locations) | {"model": model_sha256, "resolved": dict(resolved)}
    return short_digest(json.dumps(plain, sort_keys=True))


def versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES`."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            by_package[package] = "unknown"
    return by_package


REWRITTEN = {"recut": "diffseg recut", "named": "diffseg name"}
"""Settings in run.json of a run whose rows were made from those of another run (`pipeline.executor.rewrite`), with the
command that makes such a run. A run with both was cut last, since a cut drops the features that names need."""


def is_generated(settings: Mapping[str, Any]) -> bool:
    """Return True if a run with these settings in run.json generated its images, which are then in its rows."""
    return "generation" in settings


def command_of(settings: Mapping[str, Any]) -> str:
    """Return the command that makes the rows of a run with these settings, for advice."""
    default = "diffseg generate" if is_generated(settings) else "diffseg label"
    return next((command for name, command in REWRITTEN.items() if name in settings), default)


def is_run(out: Storage) -> bool:
    """Return True if a folder is the OUT of a run."""
    return out.is_file(PATH)


def read_manifest(out: Storage) -> Manifest | None:
    """Read the run.json of OUT; None if there is none. Raises RunRefused if it is not a run.json of this program."""
    try:
        return Manifest(**struct_fields(parse_manifest(read_bounded(out, PATH, DOCUMENT_BYTES))))
    except FileNotFoundError:
        return None
    except InvalidFile as error:
        raise RunRefused(
            f"{out.joined(PATH)}: is not a run record of this program ({error}). Restore the file, or name another OUT"
            f"{_other_version(_environment_of_damaged(out))}"
        ) from None


def require_manifest(out: Storage) -> Manifest:
    """Read the run.json of OUT. Raises SourceError if there is none, RunRefused as `read_manifest` does."""
    manifest = read_manifest(out)
    if manifest is None:
        raise SourceError(
            f"{out.redacted}: there is no run.json here; expected the OUT of `diffseg label`. A run that was just "
            "started writes it when its first worker has loaded the model"
        )
    return manifest


def write_manifest(out: Storage, manifest: Manifest) -> None:
    """Write run.json atomically."""
    out.write_bytes(PATH, _to_json(manifest))


def create_manifest(out: Storage, manifest: Manifest) -> bool:
    """Write run.json unless another run has just done so. Returns True if this call created the file."""
    return out.create_bytes(PATH, _to_json(manifest))


def _to_json(manifest: Manifest) -> bytes:
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode() + b"\n"


def check_same_run(before: Manifest, now: Manifest, out: Storage) -> list[str]:
    """Check that a run continues the run of OUT.

    Args:
        before: Manifest of OUT.
        now: Manifest of the run that is starting.
        out: OUT, for messages.

    Returns:
        Differences of the environment for the user. They may change the last bits of a float.

    Raises:
        RunRefused: The source or a setting differs; the message names both values.
    """
    new: Mapping[str, Any] = _flatten(now)
    old: Mapping[str, Any] = _flatten(before)
    if before.fingerprint == now.fingerprint:  # the same model may have moved
        new, old = ({"source": manifest.source} for manifest in (now, before))
    if differing := differences(old, new):
        lines = [f"  {name}: {value!r} in OUT, {other!r} now" for name, value, other in differing]
        raise RunRefused(
            f"{out.redacted} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "Choose another OUT, use the same settings, or pass --overwrite to delete that run and start over"
            f"{_other_version(before.environment)}"
        )
    # Each version by itself, since both dictionaries of versions would be a long text.
    old, new = ({**values, **versions_in(values), "versions": None} for values in (before.environment, now.environment))
    return [f"{name}: {value!r} before, {other!r} now" for name, value, other in differences(old, new)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the name and both values of each entry in which two mappings differ, sorted by name."""
    names = sorted({*before, *now})
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def versions_in(environment: Any) -> Mapping[str, Any]:
    """Return the versions in the environment of a run.json, which may hold anything."""
    found = environment.get("versions") if isinstance(environment, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _other_version(environment: Any) -> str:
    """Return a sentence, with a space before it, if another version of this program has written OUT."""
    theirs, ours = versions_in(environment).get(PACKAGES[0]), versions()[PACKAGES[0]]
    if not isinstance(theirs, str) or theirs == ours:
        return ""
    return f". It was written by {PACKAGES[0]} {shorten(theirs, 50)}, and this is {ours}"


def _environment_of_damaged(out: Storage) -> Any:
    """Return the environment of a run.json that cannot be used, None if that cannot be read either."""
    try:
        document = parse_json(read_bounded(out, PATH, DOCUMENT_BYTES))
    except (InvalidFile, FileNotFoundError):
        return None
    return document.get("environment") if isinstance(document, Mapping) else None


def _flatten(manifest: Manifest) -> dict[str, Any]:
    """Return all values that must not differ between two runs in one OUT, by the name that messages show."""
    plain = json.loads(json.dumps(dataclasses.asdict(manifest)))
    flat = {"source": plain["source"], "model_sha256": plain["model_sha256"]}
    groups = ("method", "naming")
    flat |= {name: value for name, value in plain["settings"].items() if name not in groups}
    for group in groups:
        flat |= plain["settings"].get(group, {})
    return flat | {f"resolved {name}": value for name, value in plain["resolved"].items()}
