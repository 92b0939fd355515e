"""What the pages say holds: links, paths, commands and Python blocks, and the checker notices what is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_lines import ROOT, block_commands
from doc_checks import problems
from doc_pages import Page, anchors, read_page
from labelled_runs import write_run

from pipeline.networks.files import save_network
from pipeline.networks.unet import SegmentationNetwork
from pipeline.storage import Storage

DOCS = sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))
PAGES = [*(Path(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "infra/README.md")), *DOCS]

MOST_LINES = {"README.md": 170, "CONTRIBUTING.md": 100}

NOT_RUN = {"docs/style.md"}
"""Pages whose Python blocks are samples of style: they are compiled and resolved but not run."""


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_links_paths_commands_and_python_of_a_page_hold(path: Path) -> None:
    assert problems(read_page(path)) == []


def test_the_commands_of_the_guides_are_seen() -> None:
    """Check that the tests above have something to look at."""
    for path, programs in (("README.md", {"diffseg", "make"}), ("docs/cluster.md", {"diffseg", "ray"})):
        shell = [text for _, language, text in read_page(Path(path)).blocks() if language == "sh"]
        words = [line.words for text in shell for line in block_commands(path, text)]
        assert {each[0] for each in words} >= programs
    assert sum(word.startswith("infra/") for each in words for word in each) > 3


@pytest.mark.parametrize("name", MOST_LINES)
def test_a_first_page_is_short(name: str) -> None:
    assert len(read_page(Path(name)).text.splitlines()) <= MOST_LINES[name]


@pytest.mark.parametrize("path", [Path("CONTRIBUTING.md"), *DOCS], ids=str)
def test_a_page_begins_with_a_title_and_a_paragraph(path: Path) -> None:
    kinds = [token.type for token in read_page(path).tokens if token.level == 0]
    assert kinds[:3] == ["heading_open", "heading_close", "paragraph_open"]


def test_the_index_links_to_every_page() -> None:
    index = read_page(Path("docs/README.md"))
    linked = {str(child.attrs.get("href", "")).partition("#")[0] for _, child in index.inline()}
    assert {path.name for path in DOCS} - {"README.md"} <= linked


BLOCKS = [
    pytest.param(path, line, text, id=f"{path}:{line}")
    for path in PAGES
    if str(path) not in NOT_RUN
    for line, language, text in read_page(path).blocks()
    if language == "python"
]


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> Path:
    """A folder with what the examples read: photo.jpg, OUT of a run over 20 images of two segments each, and MODEL."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(scene_folder / "a" / "000.jpg", folder / "photo.jpg")
    halves = np.repeat(np.array([[0, 1]], np.uint16), 96, axis=0).repeat(48, axis=1)
    keys = sorted(str(path.relative_to(scene_folder)) for path in scene_folder.glob("*/*"))
    write_run(folder / "OUT", dict.fromkeys(keys, halves), source=scene_folder)
    config = {"target": "segments", "width": 8, "dimensions": 4, "size": 32, "class_names": ()}
    save_network(Storage(url=str(folder / "MODEL")), SegmentationNetwork(width=8, dimensions=4), config)
    return folder


@pytest.mark.filterwarnings("ignore")  # those of the libraries that the examples use
@pytest.mark.parametrize(("path", "line", "text"), BLOCKS)
def test_a_python_block_runs(
    path: Path,
    line: int,
    text: str,
    example_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "ray." in text:
        request.getfixturevalue("local_ray")
    if "datasets." in text:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", example_folder / "cache")
    monkeypatch.chdir(example_folder)
    # An exception in the block, such as a wrong name or a failed assertion, fails the test.
    exec(compile("\n" * (line - 1) + text, str(path), "exec"), {})


def test_the_pages_on_python_use_have_blocks_that_run() -> None:
    assert {str(block.values[0]) for block in BLOCKS} >= {"README.md", "docs/training.md", "docs/how-it-works.md"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a](no-such-page.md)", "no such file"),
        ("[a](../../outside.md)", "no such file"),
        ("![a](images/none.png)", "no such file"),
        ("| a |\n|---|\n| [a](no-such-page.md) |", "no such file"),
        ("[a](style.md#no-such-heading)", "no such heading"),
        ("# A heading\n\n[a](#another-heading)", "no such heading"),
        ("`pipeline/no_such_module.py`", "no such file"),
        ("`pytest tests/docs/no_such_test.py`", "no such file"),
        ("`tests/docs/test_docs.py::test_that_is_not_there`", "no such test"),
        ("`pipeline/no-such-folder/`", "no such file or folder"),
        ("`pipeline.label.no_such_function`", "does not define"),
        ("```sh\nkubectl apply -k infra/no-such-overlay\n```", "no such file or folder"),
        ("```\ndiffseg lable SRC OUT\n```", "no command"),
        ("```\ndiffseg label SRC\n```", "OUT"),
        ("```sh\nPYTHONUNBUFFERED=1 diffseg label SRC OUT \\\n  --modle tiny  # a comment\n```", "--modle"),
        ("```sh\npython -m jobs.evaluate OUT TRUTH --croop centre\n```", "--croop"),
        ("```sh\nmake no-such-target\n```", "no-such-target"),
        ("```sh\nmake proof NAME=no-such-proof\n```", "no-such-proof"),
        ("`make no-such-target`", "no-such-target"),
        ("`diffseg lable`", "no command"),
        ("`diffseg label … --modle tiny`", "--modle"),
        ("`diffseg bench --part whole --no-such-flag`", "--no-such-flag"),
        ("```python\nimport diffseg\ndiffseg.segmenter(\n```", "Python block"),
        ("```python\nimport no_such_library\n```", "no module no_such_library"),
        ("```python\nfrom pipeline.label import label_shards\n```", "does not define label_shards"),
        ("```python\nimport diffseg\ndiffseg.Segmentor\n```", "does not define Segmentor"),
    ],
)
def test_what_is_broken_is_noticed(text: str, message: str) -> None:
    (problem,) = problems(Page(path=Path("docs/sample.md"), text=f"{text}\n"))
    assert problem.startswith("docs/sample.md:")
    assert message in problem


def test_what_holds_is_accepted() -> None:
    text = """
# Title of `a/b`, with signs!

[here](#title-of-ab-with-signs) [page](style.md#docstrings) [code](../tests/doc_pages.py) [site](https://example.org/x#y)

`pipeline/label.py`, `tests/docs/`, `tests/docs/test_docs.py::test_what_holds_is_accepted`, `pipeline/test_label.py`,
`pipeline.label.label_shard`, `diffseg.json`, `diffseg label`, `diffseg label … --retry-failed`,
`diffseg COMMAND --help`, `diffseg bench --parts whole`, `diffseg evaluate --classes`, `make proof NAME=…`

```
diffseg label s3://in s3://out --model tiny    # a comment
OUT/labels/a.parquet
```

```sh
PIP_EXTRA_INDEX_URL=https://example.org make demo
make evaluate-sd MODEL=… DATA=… BENCHMARK=cityscapes-27
ray job submit --address http://localhost:8265 -- python -m jobs.label SRC OUT
```

```python
import diffseg
from pipeline.label import label_shard
diffseg.Segmenter.from_pretrained("tiny")
```
"""
    assert problems(Page(path=Path("docs/sample.md"), text=text)) == []


def test_anchors_are_those_of_github() -> None:
    text = "# How it works\n## `a_b`: 1, 2 & 3\n## Twice\n## Twice\n## Größe – [linked](x.md)\n"
    expected = {"how-it-works", "a_b-1-2--3", "twice", "twice-1", "größe--linked"}
    assert anchors(Page(path=Path("docs/sample.md"), text=text)) == expected
