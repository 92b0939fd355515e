"""The shards of the sources that a user can name: folders, files, globs and brace ranges."""

import pickle
import re

import pytest

from pipeline.readers.find import find_shards
from pipeline.storage import SourceError, Storage
from pipeline.storage.remote import RemoteFolder


@pytest.fixture(params=["local", "memory"])
def make(request, tmp_path):
    """Return a function that creates empty files of the given names and returns the URL of their folder."""

    def make_files(*names):
        url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
        for name in names:
            Storage(url=url).write_bytes(name, b"")
        return url

    return make_files


def names(source, **settings):
    return [shard.name for shard in find_shards(source, **settings)]


def test_a_folder_of_tars_sorted_by_name(make):
    url = make("b.tar", "a/z.tar.gz", "a/y.tgz", ".hidden.tar", ".git/x.tar", "_SUCCESS", "README.md")
    shards = find_shards(url)
    assert [shard.name for shard in shards] == ["a--y", "a--z", "b"]
    assert {shard.kind for shard in shards} == {"tar"}
    assert [shard.url for shard in shards] == [f"{url}/{path}" for path in ("a/y.tgz", "a/z.tar.gz", "b.tar")]
    assert find_shards(url + "/") == shards
    assert pickle.loads(pickle.dumps(shards)) == shards


def test_a_folder_of_parquet_without_the_other_files_of_spark(make):
    url = make("train/p-0.parquet", "train/_temporary/0/p-1.parquet", "_delta_log/1.parquet", "train/_SUCCESS")
    assert names(url) == ["train--p-0"]


def test_image_files_are_grouped_into_shards(make):
    files = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(5)] + ["_MG_1.JPG"]
    url = make(*files, "a/.thumb.jpg", "notes.txt")
    shards = find_shards(url, samples_per_shard=4)
    assert len(shards) > 1
    assert all(re.fullmatch("images-[0-9a-f]{12}", shard.name) for shard in shards)
    assert [path for shard in shards for path in shard.files] == sorted(files)
    assert {(shard.url, shard.kind) for shard in shards} == {(url, "images")}


def test_a_replaced_file_has_another_version(make):
    url = make("a.tar", "b.tar", "images/c.png")

    def versions(source):
        return {shard.name: shard.version for shard in find_shards(source)}

    sources = (url.rstrip("/") + "/*.tar", f"{url}/a.tar", f"{url}/images")
    before = [versions(source) for source in sources]
    assert all(version for found in before for version in found.values())
    assert [versions(source) for source in sources] == before
    Storage(url=url).write_bytes("a.tar", b"more")
    Storage(url=url).write_bytes("images/c.png", b"more")
    after = [versions(source) for source in sources]
    assert [old.keys() == new.keys() for old, new in zip(before, after, strict=True)] == [True] * 3
    changed = [[name for name in old if old[name] != new[name]] for old, new in zip(before, after, strict=True)]
    assert changed == [["a"], ["a"], list(before[2])]


def test_the_version_of_a_file_that_only_a_brace_range_names(make):
    url = make("a-0.tar", "a-1.tar")
    local = not url.startswith("memory")
    assert [bool(shard.version) for shard in find_shards(f"{url}/a-{{0..2}}.tar")] == [local, local, False]


def test_a_single_file(make):
    url = make("a.b.tar", "b.tar", "c.png")
    assert names(f"{url}/a.b.tar") == ["a.b"]
    assert find_shards(f"{url}/c.png")[0].files == ("c.png",)


def test_globs(make):
    url = make("train-0.tar", "train-1.tar", "val-0.tar", "deep/train-2.tar", "report.png")
    assert names(f"{url}/train-*.tar") == ["train-0", "train-1"]
    assert names(f"{url}/train-[1-9].tar") == ["train-1"]
    assert names(f"{url}/*-?.tar") == ["train-0", "train-1", "val-0"]
    assert names(f"{url}/**/train-*.tar") == ["deep--train-2", "train-0", "train-1"]
    assert names(f"{url}/*/*.tar") == ["deep--train-2"]
    with pytest.raises(SourceError, match=r"no \.tar"):
        find_shards(f"{url}/test-*.tar")
    with pytest.raises(SourceError, match=re.escape("**")):
        find_shards(f"{url}/a**.tar")


def test_braces(make):
    url = make("a-000.tar", "a-001.tar", "x/0.tar", "y/0.tar", "x/1.tar")
    # The names of a range are not checked for existence: a-002 is missing.
    shards = find_shards(f"{url}/a-{{000..002}}.tar")
    assert [shard.url for shard in shards] == [f"{url}/a-00{number}.tar" for number in range(3)]
    assert names(f"{url}/{{x,y}}/0.tar") == ["x--0", "y--0"]
    assert names(f"{url}/{{x,y}}/*.tar") == ["x--0", "x--1", "y--0"]
    assert names(f"{url}/{{x,y}}") == ["x--0", "x--1", "y--0"]
    assert names(f"{url}/{{x,y}}") == names(f"{url}/{{y,x}}/")
    with pytest.raises(SourceError, match="/z: no shards"):
        find_shards(f"{url}/{{x,z}}")
    with pytest.raises(SourceError, match="1000000"):
        find_shards(f"{url}/{{0..99999999}}.tar")
    with pytest.raises(SourceError, match="braces do not match"):
        find_shards(f"{url}/{{a/{{0..3}}.tar")


def test_the_names_of_a_brace_range_need_no_request(monkeypatch):
    monkeypatch.setattr(RemoteFolder, "_request", lambda *_: pytest.fail("the store was sent a request"))
    shards = find_shards("s3://bucket/train/{00000..09999}.tar")
    assert len(shards) == 10_000
    assert (shards[7].name, shards[7].url) == ("00007", "s3://bucket/train/00007.tar")


def test_signed_urls_keep_their_signature_and_hide_it_in_messages():
    shard = find_shards("https://user:pw@host/d/a-{0..1}.tar?sig=abc/def&e=1")[1]
    assert (shard.name, shard.kind) == ("a-1", "tar")
    assert shard.url == "https://user:pw@host/d/a-1.tar?sig=abc/def&e=1"
    assert repr(shard) == "Shard(name='a-1', kind='tar', url='https://host/d/a-1.tar', 0 files)"


def test_names_that_look_like_patterns(tmp_path):
    folder = tmp_path / "what [is] {this,that}"
    folder.mkdir()
    (folder / "a?.tar").write_bytes(b"")
    assert len(find_shards(str(folder))) == 1
    assert len(find_shards(str(folder / "a?.tar"))) == 1


def test_several_kinds_are_refused(make):
    url = make("a.tar", "b.tar", "c.jpg", "d.parquet")
    with pytest.raises(SourceError, match=r"1 images, 1 parquet, 2 tar.*/\*\*/\*.tar'"):
        find_shards(url)
    assert names(f"{url}/**/*.tar") == ["a", "b"]


def test_a_source_without_data_files_is_named(make):
    url = make("README.md")
    for source in (url, f"{url}/no"):
        with pytest.raises(SourceError, match=re.escape(source) + ".*no .tar"):
            find_shards(source)
    with pytest.raises(SourceError, match="at least 1, not 0"):
        find_shards(url, samples_per_shard=0)


def test_two_files_with_the_same_shard_name_are_refused(make):
    url = make("x.tar", "x.tar.gz")
    with pytest.raises(SourceError, match=r"x\.tar and .*x\.tar\.gz would both be shard 'x'"):
        find_shards(url)


def test_names_are_safe_and_distinct(tmp_path):
    paths = [
        "a--b.tar",
        "a/b.tar",
        "a-/b.tar",
        "a/-b.tar",
        "a b.tar",
        "a_b.tar",
        "a b/c.tar",
        "é/ü.tar",
        "-rf.tar",
        "x" * 200 + ".tar",
        "x" * 199 + "y.tar",
        "\udcff.tar",
    ]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    by_path = {shard.url.removeprefix(f"{tmp_path}/"): shard.name for shard in find_shards(str(tmp_path))}
    assert sorted(by_path) == sorted(paths)
    assert len(set(by_path.values())) == len(paths)
    assert by_path["a/b.tar"] == "a--b"
    assert by_path["a_b.tar"] == "a_b"
    assert re.fullmatch(r"a_b--c-[0-9a-f]{8}", by_path["a b/c.tar"])
    for name in by_path.values():
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,149}", name), name


def test_a_name_depends_only_on_its_path(make):
    url = make("é.tar", "b.tar")
    before = {shard.url: shard.name for shard in find_shards(url)}
    make("a.tar", "z/é.tar")
    after = {shard.url: shard.name for shard in find_shards(url)}
    assert before.items() <= after.items()
