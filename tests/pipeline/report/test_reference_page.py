"""The page of references: escaped names and keys, outlined seeds, and pages without the source images."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference_runs import BY_LABELS, PlantedImage, planted_images, write_feature_run
from report_pages import HOSTILE

from pipeline.output.manifest import require_manifest
from pipeline.readers.find import find_shards
from pipeline.readers.names import NameSettings
from pipeline.references.learn import learn_references
from pipeline.references.retrieve import ReferenceSettings
from pipeline.report import reference_page
from pipeline.report.reference_page import PAGE, SIDE, picture, write_reference_page
from pipeline.storage import SourceError, Storage

NAME = "".join(letter for letter in HOSTILE if letter.isprintable())


class Elements(HTMLParser):
    """Collects the elements that a browser would create, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(folder: Path, *, with_images: bool = False, missing: str = "") -> str:
    out, state = Storage(url=str(folder / "out")), Storage(url=str(folder / "state"))
    manifest = require_manifest(out)
    sources = {}
    if with_images:
        shards = find_shards(str(folder / "images"), out, samples_per_shard=4)
        sources = {f"{number:05}": shard for number, shard in enumerate(shards)}
    write_reference_page(state, out, manifest, sources, missing)
    return (folder / "state" / PAGE).read_text()


def learn(folder: Path, images: dict[str, PlantedImage | None], naming: NameSettings = BY_LABELS) -> None:
    write_feature_run(folder / "out", images)
    out = Storage(url=str(folder / "out"))
    settings = ReferenceSettings(naming=naming, contexts=1)
    learn_references(out, require_manifest(out), settings, Storage(url=str(folder / "state")))


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))))


def test_each_name_has_its_retrieved_images_with_seeds_and_supports(tmp_path: Path) -> None:
    learn(tmp_path, planted_images())
    page = page_of(tmp_path, missing="SRC <gone>")
    assert re.findall(r'<h2 id="name-\d+"><bdi>(.*?)</bdi>', page) == ["cat", "dog", "sky"]
    assert "<h1>References of 3 names</h1>" in page
    assert "10 images, 10 retrieved, mean support" in page
    assert page.count("<li>") == 10 + 10 + 12
    assert page.count("support 0.") + page.count("support 1.") == 3 + 32
    assert page.count("data:image/jpeg") == 32
    assert "a context of the other names" in page
    assert "SRC &lt;gone&gt;" in page
    assert "labels of samples, field labels" in page


def test_names_and_keys_appear_as_text(tmp_path: Path) -> None:
    features = np.eye(256)[:2] / 2
    images = {HOSTILE: PlantedImage(features, {"labels": [NAME]}), "b": PlantedImage(features / 2, {"labels": [NAME]})}
    learn(tmp_path, images, NameSettings(names=(NAME,), labels_field="labels"))
    page = page_of(tmp_path, missing=HOSTILE)
    assert "<h1>References of 1 name</h1>" in page
    elements = Elements()
    elements.feed(page)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    texts = {attributes["alt"] for tag, attributes in elements.found if tag == "img"}
    assert texts == {f"seed of {NAME} in {HOSTILE}", f"seed of {NAME} in b"}
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:image/jpeg;base64,|#)", page), "nothing is fetched"


def test_the_seed_is_outlined_in_the_source_image_and_the_rest_is_darker(tmp_path: Path) -> None:
    images: dict[str, PlantedImage | None] = planted_images(8)
    (tmp_path / "images").mkdir()
    for key in images:
        Image.new("RGB", (10, 3), (200, 100, 50)).save(tmp_path / "images" / key)
    learn(tmp_path, images)
    page = page_of(tmp_path, with_images=True)
    uris = re.findall(r'src="(data:image/jpeg;base64,[^"]*)"', page)
    assert len(uris) == len(re.findall("<li>", page))
    assert all(pixels_of(uri).shape == (3, 10, 3) for uri in uris)
    assert uris != re.findall(r'src="(data:image/jpeg;base64,[^"]*)"', page_of(tmp_path)), "without images it differs"


def test_a_picture_shows_the_seed_at_full_brightness() -> None:
    pixels = np.full((40, 60, 3), 200, np.uint8)
    labels = np.zeros((40, 60), np.uint16)
    labels[:, 30:] = 7
    shown = pixels_of(picture(pixels, labels, 7)).astype(int)
    assert abs(shown[20, 45] - 200).max() < 8
    assert abs(shown[20, 10] - 80).max() < 8
    assert shown[20, 29:31, 2].min() < 80, "the outline is yellow"
    assert abs(pixels_of(picture(pixels, labels, None)).astype(int) - 200).max() < 8
    assert max(pixels_of(picture(np.zeros((900, 300, 3), np.uint8), np.zeros((900, 300), np.uint16), 0)).shape) <= SIDE


def test_only_the_label_shards_with_the_most_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(tmp_path, planted_images())
    monkeypatch.setattr(reference_page, "SHARDS_READ", 2)
    monkeypatch.setattr(reference_page, "NAMES_SHOWN", 2)
    page = page_of(tmp_path)
    assert page.count("<li>") == page.count("data:image/jpeg") <= 8
    assert "and 1 more name<" in page
    out = Storage(url=str(tmp_path / "out"))
    with pytest.raises(SourceError, match="expected the STATE"):
        write_reference_page(Storage(url=str(tmp_path / "none")), out, require_manifest(out), {})
