"""The files of a run's model: what is found, what is missing, and that only their contents identify a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from model_stores import UNET, files, find, upload

from diffseg import CheckpointError
from diffseg.model.files import fingerprint
from diffseg.model.layout import TINY
from diffseg.settings import settings_of
from pipeline import weights
from pipeline.errors import RunRefused
from pipeline.executor.driver import label_run
from pipeline.executor.protocol import Job
from pipeline.executor.worker import LabelWorker
from pipeline.generation.settings import GenerateSettings
from pipeline.readers.pack import pack_images
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.weights import CACHE, find_weights

pytestmark = pytest.mark.usefixtures("node_cache")


def test_an_autoencoder_may_have_a_folder_of_its_own(model_store: Storage, tmp_path: Path) -> None:
    bare = Storage(url=f"memory://{tmp_path.name}/vae")
    upload(TINY / "vae", bare)
    needed = {"config.json", "diffusion_pytorch_model.safetensors"}
    for url, expected in ((bare.url, needed), (model_store.url, {f"vae/{name}" for name in needed})):
        found_weights = find("tiny", vae=url)
        assert found_weights.vae is not None
        assert files(found_weights.vae) == expected | {"record.json"}
        assert found_weights.fingerprint() == fingerprint(TINY, vae=found_weights.vae) != fingerprint(TINY)


def test_a_model_that_generates_is_fetched_with_its_noise_schedule(model_store: Storage) -> None:
    schedule = "scheduler/scheduler_config.json"
    labelling, generating = LabelSettings(model=model_store.url), GenerateSettings(model=model_store.url)
    digests = []
    for content in (b'{"_class_name": "DDIMScheduler"}', b'{"_class_name": "PNDMScheduler"}'):
        model_store.write_bytes(schedule, content)
        found = [find_weights(settings, Storage(url=".")) for settings in (labelling, generating)]
        assert [(each.model / schedule).is_file() for each in found] == [False, True]
        digests.append([each.fingerprint() for each in found])
    assert digests[0][0] == digests[1][0] == fingerprint(TINY)
    assert digests[0][1] != digests[1][1]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("unet", r"sd: looked for unet/config.json and found none; expected a folder in the diffusers layout"),
        (UNET, r"sd: looked for unet/diffusion_pytorch_model.safetensors .* and found none. Only safetensors"),
        ("vae", r"vae of memory://.*/sd: looked for vae/config.json; the folder holds .*unet"),
        ("vae/config.json", r"vae of memory://.*/sd: looked for vae/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", r"vae of memory://.*/sd: looked for diffusion_pytorch_model.saf"),
    ],
)
def test_a_missing_part_is_reported_with_the_url(removed: str, message: str, model_store: Storage) -> None:
    for path, _ in model_store.files():
        if path == removed or path.startswith(f"{removed}/"):
            model_store.delete(path)
    job = Job(
        settings=LabelSettings(model=model_store.url),
        worker=WorkerSettings(device="cpu"),
        source=Storage(url="."),
        out=Storage(url="."),
    )
    with pytest.raises(CheckpointError, match=message):
        LabelWorker().load(job)


def test_a_url_without_a_checkpoint_is_refused_before_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Storage(url=f"memory://{tmp_path.name}/images")
    images.write_bytes("0.jpg", b"")
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *a, **k: pytest.fail("a listing could hold millions of names"))
    with pytest.raises(CheckpointError, match=r"images: looked for unet/config.json and found none"):
        find(images.url)
    with pytest.raises(CheckpointError, match=r"images: looked for config.json or vae/config.json and found none"):
        find("tiny", vae=images.url)


def test_a_url_of_a_single_file_is_refused(model_store: Storage) -> None:
    for name in ("sd15.safetensors", "sd15.ckpt"):
        with pytest.raises(CheckpointError, match=rf"{name}: a single file is read only from a disk of each node"):
            find(f"{model_store.url}/{name}")


@pytest.mark.parametrize("location", ["/dev/null/cache", "~nobody-of-this-name/cache"])
def test_a_cache_that_cannot_be_written_is_reported_with_its_variable(
    location: str, model_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, location)
    with pytest.raises(CheckpointError, match=r"(null/cache: cannot keep a copy of memory.*Set|set) DIFFSEG_CACHE to"):
        find(model_store.url)


def test_the_default_cache_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert weights.cache_folder() == Path("/x/diffseg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert weights.cache_folder() == Path("/h/.cache/diffseg")


def test_a_missing_model_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.executor.protocol import Job\n"
        "from pipeline.executor.worker import LabelWorker\n"
        "from pipeline.settings import LabelSettings, WorkerSettings\n"
        "from pipeline.storage import Storage\n"
        "for named in {'model': 'http://127.0.0.1:9/sd'}, {'model': 'owner/name'}, {'vae': '/no/such/folder'}:\n"
        "    job = Job(settings=LabelSettings(**named), worker=WorkerSettings(), source=Storage(url='.'), out=None)\n"
        "    try: LabelWorker().load(job)\n"
        "    except ValueError as error: print(type(error).__name__, {'torch', 'diffusers'} & set(sys.modules))"
    )
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(TINY.parents[2])}
    output = subprocess.check_output([sys.executable, "-c", code], env=os.environ | variables, text=True)
    assert output == "CheckpointError set()\n" * 3


def test_a_run_is_identified_by_the_files_of_its_model_and_not_by_their_location(
    scene_folder: Path, model_store: Storage, tmp_path: Path
) -> None:
    source, out, vae = tmp_path / "in", tmp_path / "out", tmp_path / "vae"
    pack_images(str(scene_folder / "b"), str(source), samples_per_shard=20)
    shutil.copytree(TINY / "vae", vae)

    def run(**locations: str) -> int:
        settings = LabelSettings(method=settings_of(resolution=64), **locations)  # type: ignore[arg-type]
        worker = WorkerSettings(device="cpu")
        summary = label_run(str(source), str(out), settings=settings, worker=worker, run=RunSettings(no_ray=True))
        return summary.done_before

    assert run(model=str(TINY), vae=str(vae)) == 0
    assert run(model=model_store.url, vae=str(vae)) == 1
    upload(vae, model_store.at(f"{model_store.url}/vae-alone"))
    assert run(model=model_store.url, vae=f"{model_store.url}/vae-alone") == 1
    with pytest.raises(RunRefused, match=rf"vae: '{vae}' in OUT, None now"):
        run(model=model_store.url)
    with pytest.raises(RunRefused, match="model_sha256"):
        run(model=model_store.url, vae=model_store.url)  # the files of a checkpoint's part have other names
    for record in (out / "commits").iterdir():
        record.unlink()
    model_store.write_bytes("unet/config.json", model_store.read_bytes("unet/config.json") + b"\n")
    with pytest.raises(RunRefused, match="model_sha256"):
        run(model=model_store.url, vae=str(vae))
