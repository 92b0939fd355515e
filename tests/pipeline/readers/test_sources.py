"""Several sources in one run, and lists of sources."""

import pytest

from pipeline.readers.find import find_files, find_shards
from pipeline.readers.sources import join_sources, redacted_source
from pipeline.storage import SourceError, Storage

STORE = Storage(url=".")


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    storage = Storage(url=str(tmp_path / "src") if request.param == "local" else f"memory://{tmp_path.name}")
    for name in ("a/0.tar", "b/0.tar", "c/1.jpg", "d/1.jpg", "d/2.jpg"):
        storage.write_bytes(name, b"")
    return storage


def test_several_folders_with_equal_names(root):
    shards = find_shards(join_sources([f"{root.url}/a", f"{root.url}/b/*.tar"]))
    assert [shard.url for shard in shards] == [f"{root.url}/a/0.tar", f"{root.url}/b/0.tar"]
    assert len({shard.name for shard in shards}) == 2
    assert all(shard.name.endswith(("--a--0", "--b--0")) for shard in shards)
    (images,) = find_shards(join_sources([f"{root.url}/c", f"{root.url}/d"]), samples_per_shard=1000)
    assert [path[-7:] for path in images.files] == ["c/1.jpg"[-7:], "d/1.jpg", "d/2.jpg"]


def test_files_that_two_sources_name_are_read_once(root):
    (images,) = find_shards(join_sources([f"{root.url}/d", f"{root.url}/d/1.jpg"]), samples_per_shard=1000)
    assert len(images.files) == 2


def test_a_list_names_files_folders_and_globs(root):
    root.write_bytes("list.txt", f"# images\n\nc/1.jpg\r\n{root.url}/d/*.jpg\n".encode())
    (shard,) = find_shards(f"{root.url}/list.txt", samples_per_shard=1000)
    assert [path.rpartition("/")[2] for path in shard.files] == ["1.jpg", "1.jpg", "2.jpg"]
    assert Storage(url=shard.url).read_bytes(shard.files[0]) == b""


def test_a_list_that_grows_changes_no_other_shard(root):
    root.write_bytes("list.txt", b"a/0.tar\n")
    (before,) = find_shards(f"{root.url}/list.txt")
    root.write_bytes("list.txt", b"b/0.tar\na/0.tar\nhttps://host/x/0.tar\n")
    after = find_shards(f"{root.url}/list.txt")
    assert before in after
    assert len(after) == 3


def test_signed_urls_in_a_list(tmp_path):
    urls = [f"https://user:pw@host/d/{name}.jpg?sig=abc&e=1" for name in "ab"]
    (tmp_path / "l.urls").write_text("\n".join(urls))
    (shard,) = find_shards(str(tmp_path / "l.urls"), samples_per_shard=1000)
    assert "sig" not in shard.name
    assert shard.url == "https://user:pw@host"
    assert shard.files == ("d/a.jpg?sig=abc&e=1", "d/b.jpg?sig=abc&e=1")
    (tmp_path / "l.urls").write_text("\n".join(urls).replace("abc", "xyz"))
    assert find_shards(str(tmp_path / "l.urls"), samples_per_shard=1000)[0].name == shard.name


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe", b"a\0b"])
def test_unusable_lists_are_refused(tmp_path, content):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(SourceError, match=r"l\.txt: .*one path or URL on each line"):
        find_shards(str(tmp_path / "l.txt"))


def test_sources_in_run_json_hide_secrets(tmp_path):
    text = redacted_source(join_sources(["https://user:pw@host/a?sig=1", str(tmp_path)]), STORE)
    assert text == f"https://host/a\n{tmp_path}"


def test_a_folder_with_a_line_break_in_its_name(tmp_path):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "x.tar").write_bytes(b"")
    assert [shard.name for shard in find_shards(str(folder))] == ["x"]


def test_the_only_root_of_a_source(root):
    with pytest.raises(SourceError, match="no \\.tar"):
        find_files(join_sources([f"{root.url}/no", f"{root.url}/nothing"]), STORE)
    assert find_files(f"{root.url}/a", STORE).single_root()[0] == f"{root.url}/a"
