"""Runs that generate their images, without a model: resuming, further prompts, refusals, and readers of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import generation_doubles
import pytest
import ray
from generation_doubles import NoiseGenerator, NoiseWorker
from runs import differences, rows_of

import jobs.evaluate
import jobs.export
import jobs.report
import jobs.show
import jobs.status
import jobs.train
import jobs.verify
from diffseg.generation.request import GenerationRequest
from pipeline.errors import RunRefused
from pipeline.executor.generate import generate_run
from pipeline.executor.recut import recut_run
from pipeline.executor.summary import RunSummary
from pipeline.generation.prompts import PromptSource
from pipeline.generation.settings import GenerateSettings
from pipeline.output.rows import decode_mask
from pipeline.readers.names import NameSettings
from pipeline.settings import RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage

ray.cloudpickle.register_pickle_by_value(generation_doubles)  # workers cannot import it by name

NAMES = ("dog", "cat")


def generate(
    out: Path | str, prompts: PromptSource, names: tuple[str, ...] = NAMES, *, no_ray: bool = True, **changes: Any
) -> RunSummary:
    return generate_run(
        prompts,
        str(out),
        settings=GenerateSettings(**{"naming": NameSettings(names=names), "samples_per_shard": 2} | changes),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(no_ray=no_ray, workers=None if no_ray else 1),
        worker_class=NoiseWorker,
    )


@pytest.fixture
def prompts(tmp_path: Path) -> PromptSource:
    """Return a file of four prompts. Two of them cannot be used."""
    path = tmp_path / "prompts.txt"
    path.write_text("a dog\na cat and a dog\na house\na \x07cat\n")
    return PromptSource(url=str(path), count=2)


@pytest.fixture
def out(tmp_path: Path, prompts: PromptSource) -> Path:
    """Return OUT of a finished run over `prompts`."""
    generate(tmp_path / "out", prompts)
    return tmp_path / "out"


def test_every_requested_image_has_a_row(tmp_path: Path, prompts: PromptSource) -> None:
    summary = generate(tmp_path / "out", prompts)
    assert summary.counts == {"ok": 4, "bad_names": 2, "bad_prompt": 2}
    assert [row["prompt"] for row in rows_of(tmp_path / "out")[::2]] == [
        "a dog",
        "a cat and a dog",
        "a house",
        r"a \x07cat",
    ]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["source"] == prompts.url
    assert record["settings"]["generation"]["scheduler"] == "checkpoint"
    assert record["settings"]["naming"]["names"] == ["dog", "cat"]


def test_a_run_that_is_stopped_at_any_image_continues_with_the_same_bytes(
    tmp_path: Path, prompts: PromptSource, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image = NoiseGenerator._image
    for stop_at in (1, 2, 3, 4):
        made = 0

        def stopping(self: NoiseGenerator, request: GenerationRequest, stop_at: int = stop_at) -> object:
            nonlocal made
            made += 1
            if made == stop_at:
                raise KeyboardInterrupt
            return make_image(self, request)

        stopped = tmp_path / f"stopped at {stop_at}"
        monkeypatch.setattr(NoiseGenerator, "_image", stopping)
        with pytest.raises(KeyboardInterrupt):
            generate(stopped, prompts)
        monkeypatch.setattr(NoiseGenerator, "_image", make_image)
        assert generate(stopped, prompts).done_before == (stop_at - 1) // 2
        assert differences(stopped, out) == []


def test_runs_in_a_store_and_on_a_disk_have_the_same_rows(tmp_path: Path, prompts: PromptSource, out: Path) -> None:
    url = f"memory://{tmp_path.name}"
    generate(url, prompts)
    for path in (out / "labels").iterdir():
        assert Storage(url=url).read_bytes(f"labels/{path.name}") == path.read_bytes()


def test_further_prompts_keep_the_images_of_earlier_ones(tmp_path: Path, prompts: PromptSource, out: Path) -> None:
    assert prompts.url is not None
    before = {row["key"]: row["image"] for row in rows_of(out)}
    Path(prompts.url).write_text(Path(prompts.url).read_text() + "two cats\n")
    summary = generate(out, prompts)
    assert (summary.done_before, summary.images) == (4, 2)
    after = {row["key"]: row["image"] for row in rows_of(out)}
    assert len(after) == 10
    assert before.items() <= after.items()
    generate(tmp_path / "whole", prompts)
    assert differences(out, tmp_path / "whole") == []


def test_classes_of_the_prompts_are_the_vocabulary_unless_names_are_given(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat on a sofa", "classes": ["sofa", "cat"]}\n{"prompt": "a dog", "classes": "dog"}')
    generate(tmp_path / "out", PromptSource(url=str(path)), ())
    assert [row["classes"] for row in rows_of(tmp_path / "out")] == [["sofa", "cat"], ["dog"]]
    with pytest.raises(RunRefused, match="names"):
        generate(tmp_path / "out", PromptSource(url=str(path)))
    path.write_text('{"prompt": "a cat"}')
    with pytest.raises(SourceError, match="lists no classes; give --names"):
        generate(tmp_path / "out", PromptSource(url=str(path)), ())


def test_a_template_needs_names_and_gives_each_the_same_number(tmp_path: Path) -> None:
    summary = generate(tmp_path / "out", PromptSource(template="one {}", count=3))
    assert summary.counts == {"ok": 6}
    assert [row["classes"] for row in rows_of(tmp_path / "out")] == [["dog"]] * 3 + [["cat"]] * 3
    assert generate(tmp_path / "out", PromptSource(template="one {}", count=4)).counts == {"ok": 8}
    with pytest.raises(RunRefused, match="template"):
        generate(tmp_path / "out", PromptSource(template="two {}"))
    with pytest.raises(ValueError, match="without PROMPTS, expected --names"):
        generate(tmp_path / "new", PromptSource(), ())


def test_another_seed_is_another_run(out: Path, prompts: PromptSource) -> None:
    with pytest.raises(RunRefused, match="generation"):
        generate(out, prompts, seed=1)


@pytest.mark.usefixtures("local_ray")
def test_an_actor_of_ray_makes_the_same_bytes(tmp_path: Path, prompts: PromptSource, out: Path) -> None:
    generate(tmp_path / "ray", prompts, no_ray=False)
    assert differences(tmp_path / "ray", out) == []


def test_commands_read_the_images_from_the_rows(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").unlink()
    key = rows_of(out)[2]["key"]
    assert jobs.verify.main([str(out)]) == 0
    assert jobs.status.main([str(out), "--json"]) == 0
    assert jobs.show.main([str(out), key, "--picture", str(tmp_path / "picture.png")]) == 0
    assert jobs.report.main([str(out), "--processes", "1", "--json"]) == 0
    assert '"photographs": "found"' in capsys.readouterr().out
    truth = tmp_path / "truth"
    truth.mkdir()
    words = [str(out), str(tmp_path / "export"), "--to", "mmseg", "--copy-images", "--processes", "1"]
    assert jobs.export.main(words) == 0
    for path in (tmp_path / "export" / "ann_dir" / "train").iterdir():
        (truth / path.name).write_bytes(path.read_bytes())
    assert len(list((tmp_path / "export" / "img_dir" / "train").iterdir())) == 4
    capsys.readouterr()
    classes = json.dumps({"background": 0, "dog": 1, "cat": 2})
    words = [str(out), str(truth), "--classes", classes, "--processes", "1", "--baseline-images", "2", "--json"]
    assert jobs.evaluate.main(words) == 0
    assert json.loads(capsys.readouterr().out)["named"]["miou"]["mean"] == 1
    small = ["--no-ray", "--target", "classes", "--size", "32", "--width", "8", "--batch-size", "2", "--steps", "1"]
    assert jobs.train.main([str(out), str(tmp_path / "model"), *small]) == 0


def test_a_run_that_is_made_from_the_rows_keeps_the_images(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunSettings(no_ray=True)
    recut_run(str(out), str(tmp_path / "new"), None, background_below=0.6, run=run, format="parquet")
    before, after = rows_of(out), rows_of(tmp_path / "new")
    assert [row["image"] for row in after] == [row["image"] for row in before]
    assert {segment["name"] for row in after for segment in row["segments"]} == {"background"}
    assert decode_mask(after[0]["mask"]).shape == decode_mask(before[0]["mask"]).shape
    assert jobs.show.main([str(tmp_path / "new"), before[0]["key"], "--picture", str(tmp_path / "p.png")]) == 0
    (tmp_path / "new" / "labels" / "generated-000000.parquet").unlink()
    capsys.readouterr()
    assert jobs.verify.main([str(tmp_path / "new")]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "its rows come from those of another run" in printed
    assert "`diffseg verify --redo`, then the same `diffseg recut`: generated-000000" in printed
