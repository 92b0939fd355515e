"""Tests of `diffseg shard`: image files become WebDataset tars."""

import json
import subprocess
import sys

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from jobs.shard import main
from pipeline.readers.file_names import stem_of
from pipeline.readers.find import find_shards
from pipeline.readers.read import read_shard

FILES = {
    "1.1.jpg": b"one",
    "1_1.png": b"two",
    "22.0/a.b.JPG": b"three",
    "22.0/a_b-2.jpg": b"four",
    "__meta__/x.png": b"five",
    "ordner/größe.webp": b"six",
    f"long/{'x' * 150}.png": b"seven",
}


@pytest.fixture
def images(tmp_path):
    for path, data in FILES.items():
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_bytes(data)
    (tmp_path / "images" / "README.md").write_text("no image")
    return tmp_path / "images"


def test_every_image_is_packed_with_its_path(images, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main([str(images), str(out), "--samples-per-shard", "3"]) == 0
    assert capsys.readouterr().out.startswith("7 images in 3 shards")
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]
    ours = [sample for shard in find_shards(str(out)) for sample in read_shard(shard)]
    assert {json.loads(sample.meta)["json"]["path"]: sample.image for sample in ours} == FILES
    assert {sample.status for sample in ours} == {"ok"}
    assert len({sample.key for sample in ours}) == len(FILES)
    keys = {json.loads(sample.meta)["json"]["path"]: sample.key for sample in ours}
    assert keys["ordner/größe.webp"] == "ordner/größe"
    assert keys["22.0/a.b.JPG"] == "22.0/a_b"
    # Labels of the folder and of its tars are joined on the stem, except where two files have the same one.
    assert {path for path, key in keys.items() if stem_of(path) != stem_of(key)} == {"1_1.png", "__meta__/x.png"}


def test_webdataset_reads_the_same_keys(images, tmp_path):
    out = tmp_path / "shards"
    assert main([str(images), str(out)]) == 0
    with open(out / "000000.tar", "rb") as file:
        theirs = list(group_by_keys([{**member, "__url__": ""} for member in tar_file_iterator(file)]))
    ours = [sample for shard in find_shards(str(out)) for sample in read_shard(shard)]
    assert [sample["__key__"] for sample in theirs] == [sample.key for sample in ours]
    assert {json.loads(sample["json"])["path"] for sample in theirs} == set(FILES)


def test_the_same_files_give_the_same_bytes(images, tmp_path, capsys):
    for name in ("a", "b"):
        assert main([str(images), str(tmp_path / name), "--samples-per-shard", "4", "--json"]) == 0
    first, second = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    summary, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    left_out = {"md": {"count": 1, "examples": ["README.md"]}}
    size = sum(path.stat().st_size for path in first)
    assert summary == {"images": 7, "shards": 2, "bytes": size, "left_out": left_out}


def test_refused_commands_change_nothing(images, tmp_path, capsys):
    out = tmp_path / "shards"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "old.tar").write_bytes(b"old")
    assert main([str(images), str(out)]) == 2
    assert "holds files already (deep" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["deep"]
    assert main([str(out), str(tmp_path / "new")]) == 2
    assert "need no packing" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), str(tmp_path / "new")]) == 2
    assert "no .tar" in capsys.readouterr().err
    assert main([str(images), "pipe:cat >x"]) == 2
    assert "refused" in capsys.readouterr().err
    assert main([str(images), str(tmp_path / "new"), "--samples-per-shard", "0"]) == 2
    assert not (tmp_path / "new").exists()


def test_secrets_of_storage_options_are_not_shown(images, tmp_path, capsys):
    assert main([str(images), str(tmp_path / "a"), "--storage-options", '{"secret": "hunter2"']) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "jobs.shard", "--help"], capture_output=True, text=True, check=True)
    assert "diffseg shard" in done.stdout
    assert "IMAGES SHARDS" in done.stdout
