"""What the listing of a source leaves out, and the folders that this program writes to."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.readers import left_out
from pipeline.readers.find import find_files, find_shards
from pipeline.readers.left_out import MAX_KINDS, OTHER, LeftOut, file_kind, left_out_lines
from pipeline.readers.own_folders import OWN_OUTPUT
from pipeline.readers.parquet_files import WITHOUT_IMAGES
from pipeline.storage import SourceError, Storage

STORE = Storage(url=".")
IMAGES = pa.table({"image": [b"1"]})
METADATA = pa.table({"url": ["u"], "caption": ["c"], "key": ["000000000"], "status": ["success"]})


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return Storage(url=str(tmp_path / "src") if request.param == "local" else f"memory://{tmp_path.name}")


def write(storage, *names, data=b""):
    for name in names:
        storage.write_bytes(name, data)


def write_table(storage, path, table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(path, sink.getvalue().to_pybytes())


def counts(files):
    return {kind: entry["count"] for kind, entry in files.left_out.plain().items()}


def test_files_that_are_not_read_are_counted_by_kind(root, monkeypatch):
    monkeypatch.setattr(left_out, "find_spec", lambda name: None)
    write(root, "a.jpg", "b.avif", "c.jp2", "IMG_1.HEIC", "x/IMG_2.heic", "d.zip", "LICENSE", ".hidden", "e.jxl")
    files = find_files(root.url, STORE)
    assert [file.path for file in files.by_root[root.url]] == ["a.jpg", "b.avif", "c.jp2"]
    assert counts(files) == {"heic": 2, "zip": 1, "file without an extension": 1, "hidden file": 1, "jxl": 1}
    text = files.left_out.text()
    assert "2 heic (IMG_1.HEIC, x/IMG_2.heic): pip install 'diffseg-pipeline[heic]'" in text
    assert "pip install 'diffseg-pipeline[jxl]'" in text
    assert "unpack it" in text


def test_heic_and_jpeg_xl_are_read_where_a_plugin_is_installed(root, monkeypatch):
    monkeypatch.setattr(left_out, "find_spec", lambda name: object())
    write(root, "a.jpg", "b.HEIC", "c.jxl")
    assert len(find_files(root.url, STORE).by_root[root.url]) == 3


def test_archives_beside_tars_are_counted(root):
    names = ["a.tar", "b.tar.zst", "c.tar.bz2", "d.tgz"]
    write(root, *names, "e.tar.xz", "f.arrow", "g.tfrecord-00000-of-00002", "g.tfrecord-00001-of-00002", "h/data.mdb")
    files = find_files(root.url, STORE)
    assert [file.path for file in files.by_root[root.url]] == names
    assert [shard.name for shard in find_shards(root.url)] == ["a", "b", "c", "d"]
    assert counts(files) == {"tar.xz": 1, "arrow": 1, "tfrecord": 2, "mdb": 1}


def test_a_glob_leaves_out_only_what_it_names(root):
    write(root, "a.jpg", "b.txt", "c.heif.txt")
    assert not find_files(f"{root.url}/*.jpg", STORE).left_out
    assert counts(find_files(f"{root.url}/*", STORE)) == {"txt": 2}


def test_a_folder_of_nothing_else_says_what_it_holds(root):
    write(root, "a.zip", "b.tfrecord")
    with pytest.raises(SourceError, match=r"no \.tar.*1 tfrecord \(b\.tfrecord\): convert it.*1 zip"):
        find_files(root.url, STORE)


def test_the_number_of_kinds_is_bounded():
    listed = LeftOut()
    for number in range(MAX_KINDS + 5):
        listed.add(file_kind(f"a.x{number}"), f"a.x{number}")
    assert len(listed.plain()) == MAX_KINDS + 1
    assert listed.plain()[OTHER]["count"] == 5
    assert json.loads(json.dumps(listed.plain())) == listed.plain()
    assert "1 x1 (a.x1)" in left_out_lines(listed.plain())[0]


def test_hidden_files_alone_do_not_count_as_left_out(root):
    write(root, "a.jpg", ".DS_Store", ".git/config")
    files = find_files(root.url, STORE)
    assert not files.left_out
    assert counts(files) == {"hidden file": 2}


def test_the_output_is_never_a_source(root):
    write(root, "a.png", "out/report/b.png", "outer/c.png")
    out = root.at(f"{root.url}/out")
    (shard,) = find_shards(root.url, out=[out], samples_per_shard=1000)
    assert shard.files == ("a.png", "outer/c.png")
    (shard,) = find_shards(f"{root.url}/**/*.png", out=[out], samples_per_shard=1000)
    assert shard.files == ("a.png", "outer/c.png")


@pytest.mark.parametrize("source", ["", "/in", "/in/a.png", "/in/*.png", "/{in,x}", "/in/{a,b}.png"])
def test_a_source_in_the_output_is_refused(root, source):
    write(root, "in/a.png")
    with pytest.raises(SourceError, match="to which this command writes"):
        find_shards(root.url + source, out=[root])


def test_outputs_of_other_runs_are_left_out(root):
    run = {"fingerprint": "f", "model_sha256": "m", "settings": {}}
    write(root, "old/run.json", data=json.dumps(run).encode())
    for record in ("export/.diffseg-export.json", "earlier/export.json"):
        write(root, record, data=b'{"fingerprint": "f", "format": "coco", "photographs": true}')
    write(root, "model/train.json", data=b'{"labels": "f", "workers": 1}')
    write(root, "old/report/a.png", "export/images/b.png", "earlier/b.png", "model/curves.png")
    write(root, "coco/train.json", data=b'{"images": []}')
    write(root, "coco/c.png", "yolo/run.json", "yolo/d.png")
    files = find_files(root.url, STORE)
    assert [file.path for file in files.by_root[root.url]] == ["coco/c.png", "yolo/d.png"]
    assert files.left_out.plain()[OWN_OUTPUT] == {"count": 4, "examples": ["earlier", "export", "model"]}


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_the_folders_that_img2dataset_leaves(root, layout):
    for number in range(3):
        name = f"{number:05d}"
        write(root, f"{name}_stats.json")
        if layout == "parquet":
            write_table(root, f"{name}.parquet", METADATA.append_column("jpg", pa.array([b"1"])))
            continue
        write_table(root, f"{name}.parquet", METADATA)
        if layout == "webdataset":
            write(root, f"{name}.tar")
        else:
            write(root, *(f"{name}/{name}000{n}.{extension}" for n in range(2) for extension in ("jpg", "json", "txt")))
    files = find_files(root.url, STORE)
    assert files.kind == {"webdataset": "tar", "files": "images", "parquet": "parquet"}[layout]
    assert len(files.by_root[root.url]) == (6 if layout == "files" else 3)
    left = counts(files)
    assert left.pop(WITHOUT_IMAGES, 0) == (0 if layout == "parquet" else 3)
    assert left == {"json": 9, "txt": 6} if layout == "files" else left == {"json": 3}


def test_parquet_with_images_beside_tars_is_refused(root):
    write(root, "a.tar")
    write_table(root, "b.parquet", IMAGES)
    with pytest.raises(SourceError, match="1 parquet, 1 tar"):
        find_files(root.url, STORE)


def test_metadata_beside_parquet_with_images_is_left_out(root):
    write_table(root, "a.parquet", METADATA)
    write_table(root, "b.parquet", IMAGES)
    files = find_files(root.url, STORE)
    assert [file.path for file in files.by_root[root.url]] == ["b.parquet"]
    assert counts(files) == {WITHOUT_IMAGES: 1}


def test_parquet_files_of_addresses_alone_are_refused_with_advice(root):
    write_table(root, "a.parquet", METADATA)
    with pytest.raises(SourceError, match=r"a\.parquet: no column can be the image.*only the URLs.*img2dataset"):
        find_files(root.url, STORE)
