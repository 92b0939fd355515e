"""The same images as tars, Parquet and a folder give identical masks with any number of actors.

test_kill.py (with Ray) and test_commands.py (without) run the command in another process.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.table import Table
from runs import label, masks_of, rows_of

import jobs.label
import jobs.shard

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data"
SETS = ("coco", "voc", "captions")
EVERY = 25
"""The ordinary tests label every 25th photograph, because labelling all of them takes minutes."""
KINDS = ("folder", "tars", "parquet", "datasets")


def _in_files(rows: list[dict], folder: Path, per_file: int) -> Iterator[tuple[Path, list[dict]]]:
    folder.mkdir()
    for start in range(0, len(rows), per_file):
        yield folder / f"{start // per_file:04d}.parquet", rows[start : start + per_file]


def write_sources(images: Path, root: Path, per_shard: int) -> dict[str, Path]:
    """Write the images of a folder in every form that SRC may have.

    Args:
        images: The folder of images.
        root: The folder for the other forms.
        per_shard: Samples per shard.

    Returns:
        The path of each form by its kind. The keys of the samples are the file names.
    """
    datasets = pytest.importorskip("datasets")
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    assert jobs.shard.main([str(images), str(root / "tars"), "--samples-per-shard", str(per_shard)]) == 0
    rows = [{"key": path.relative_to(images).as_posix(), "image": path.read_bytes()} for path in paths]
    for path, part in _in_files(rows, root / "parquet", per_shard):
        pq.write_table(pa.Table.from_pylist(part), path)
    # `datasets` writes structs of bytes and path, and its own metadata in the footer.
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    structs = [{"image": {"bytes": row["image"], "path": row["key"]}, "caption": row["key"]} for row in rows]
    datasets.disable_progress_bars()
    for path, part in _in_files(structs, root / "datasets", per_shard):
        datasets.Dataset.from_list(part, features=features).to_parquet(path)
    return {"folder": images, **{kind: root / kind for kind in KINDS if kind != "folder"}}


def stems(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the masks by their keys without the extension, as in a tar."""
    return {key.rpartition(".")[0] if "." in key else key: mask for key, mask in masks.items()}


def assert_same_masks(masks: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    actual, wanted = stems(masks), stems(expected)
    assert actual.keys() == wanted.keys()
    assert [key for key in wanted if not np.array_equal(actual[key], wanted[key])] == []


@pytest.fixture(scope="module")
def sources(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sources(scene_folder, tmp_path_factory.mktemp("sources"), 4)


@pytest.fixture(scope="module")
def expected(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label the folder of images in this process, and return OUT."""
    out = tmp_path_factory.mktemp("expected")
    assert label(sources["folder"], out, "--no-ray", "--samples-per-shard", "4") == 0
    return out


def test_the_masks_differ_and_have_several_segments(expected: Path) -> None:
    """Otherwise the other tests would pass for a program that gives each image the same single segment."""
    masks = masks_of(expected)
    assert len(masks) == 20
    assert np.mean([row["n_segments"] for row in rows_of(expected)]) > 3
    assert len({mask.tobytes() for mask in masks.values()}) == 20


@pytest.mark.parametrize("kind", ["tars", "parquet", "datasets"])
def test_every_kind_of_source_gives_the_masks_of_the_folder(
    kind: str, sources: dict[str, Path], expected: Path, tmp_path: Path
) -> None:
    assert label(sources[kind], tmp_path, "--no-ray") == 0
    assert_same_masks(masks_of(tmp_path), masks_of(expected))
    if kind != "tars":  # the keys of a tar have no extension, because webdataset ends a key at the first dot
        # The groups of a folder are not in the order of the paths.
        assert sorted(row["key"] for row in rows_of(tmp_path)) == sorted(row["key"] for row in rows_of(expected))


@pytest.mark.usefixtures("local_ray")
def test_an_actor_gives_the_masks_of_one_process(sources: dict[str, Path], expected: Path, tmp_path: Path) -> None:
    """test_kill.py labels tars with two actors."""
    assert label(sources["datasets"], tmp_path, "--workers", "1") == 0
    assert_same_masks(masks_of(tmp_path), masks_of(expected))


def photographs(root: Path, every: int) -> Path:
    """Make a folder of links to one in `every` photographs of each set beside this checkout."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the photographs are not beside this checkout (../shared/data)")
    for name in SETS:
        (root / name).mkdir(parents=True)
        for path in sorted((PHOTOGRAPHS / name / "images").iterdir())[::every]:
            (root / name / path.name).symlink_to(path)
    return root


def test_photographs(tmp_path: Path) -> None:
    sources = write_sources(photographs(tmp_path / "images", EVERY), tmp_path, 5)
    for kind in KINDS:
        assert label(sources[kind], tmp_path / f"out-{kind}", "--no-ray", "--samples-per-shard", "5") == 0
    expected = masks_of(tmp_path / "out-folder")
    assert len(expected) == 10
    for kind in KINDS[1:]:
        assert_same_masks(masks_of(tmp_path / f"out-{kind}"), expected)


@pytest.mark.photographs
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(4 * 3600)
def test_all_photographs_as_every_source_with_any_number_of_actors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the default settings of the checkpoint. Prints a table of the runs, which must agree in each pixel."""
    sources = write_sources(photographs(tmp_path / "images", 1), tmp_path, 25)
    table = Table(
        title="250 photographs, embedded model at its own resolution, CPU; start of model and actors included"
    )
    for name in ("SRC", "actors", "Ray", "images", "images/s", "masks identical"):
        table.add_column(name, justify="left" if name in ("SRC", "Ray") else "right")
    first: dict[str, np.ndarray] = {}
    wrong = 0
    for actors in (0, 1, 2):
        for kind in KINDS:
            out = tmp_path / f"{kind}-{actors}"
            flags = ["--workers", str(actors)] if actors else ["--no-ray"]
            line = [str(sources[kind]), str(out), "--device", "cpu", "--samples-per-shard", "25", *flags]
            start = time.perf_counter()
            assert jobs.label.main(line) == 0
            seconds = time.perf_counter() - start
            masks = stems(masks_of(out))
            first = first or masks
            assert masks.keys() == first.keys()
            same = sum(np.array_equal(masks[key], first[key]) for key in first)
            wrong += len(first) - same
            ray = "yes" if actors else "no"
            table.add_row(kind, str(actors or "–"), ray, str(len(masks)), f"{len(masks) / seconds:.2f}", str(same))
            capsys.readouterr()
            with capsys.disabled():
                print(f"{kind}, {actors} actors: {len(masks)} images in {seconds:.0f} s", flush=True)
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    with capsys.disabled():
        print(f"\n{text.getvalue()}")
    assert len(first) == 250
    assert wrong == 0
