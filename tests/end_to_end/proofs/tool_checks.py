"""A check of each tool of `tools.py`. The Python of the tool runs this file, which imports nothing of the project."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from importlib.metadata import version
from pathlib import Path

import numpy as np

CLASSES = ("background", "sky", "road", "sea")


def truth(data: Path) -> dict[str, np.ndarray]:
    """Return the class map of each image, uint16 [H, W], by the name of its files."""
    folder = data / "truth"
    return {
        str(path.relative_to(folder))[: -len(".png.npy")].replace("/", "--"): np.load(path)
        for path in folder.rglob("*.npy")
    }


def check_segformer(data: Path) -> str:
    """Train SegFormer with random weights on the Hugging Face export as it is; the loss must fall."""
    import datasets
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    loaded = datasets.load_dataset(str(data / "huggingface"), cache_dir=str(data / "cache"))
    id2label = {int(key): name for key, name in json.loads((data / "huggingface/id2label.json").read_text()).items()}
    rows = list(loaded["train"])
    for row in rows:
        expected = truth(data)[row["stem"].replace("/", "--")]
        assert (np.asarray(row["label"]) == expected).all()
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=len(id2label),
        id2label=id2label,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 16, 32, 32],
        decoder_hidden_size=32,
        semantic_loss_ignore_index=255,
    )
    model = SegformerForSemanticSegmentation(config)
    processor = SegformerImageProcessor(size={"height": 96, "width": 96}, do_reduce_labels=False)
    images, labels = [row["image"].convert("RGB") for row in rows], [row["label"] for row in rows]
    batch = processor(images, segmentation_maps=labels, return_tensors="pt")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    return f"transformers {version('transformers')}: 12 steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"


def check_supervision(data: Path) -> str:
    """Check that supervision reads the masks of the run from the COCO and YOLO exports."""
    import supervision

    expected = truth(data)
    images = 0
    lowest = 1.0
    for part in ("train", "val"):
        coco = supervision.DetectionDataset.from_coco(
            str(data / f"coco/images/{part}"), str(data / f"coco/annotations/instances_{part}.json"), force_masks=True
        )
        for path, _, found in coco:
            labels = expected[Path(path).stem]
            for mask, number in zip(found.mask, found.class_id, strict=True):
                assert (mask == (labels == CLASSES.index(coco.classes[number]))).all(), path
            images += 1
        folder = data / "yolo"
        yolo = supervision.DetectionDataset.from_yolo(
            str(folder / f"images/{part}"), str(folder / f"labels/{part}"), str(folder / "data.yaml"), force_masks=True
        )
        for path, _, found in yolo:
            labels = expected[Path(path).stem]
            for mask, number in zip(found.mask, found.class_id, strict=True):
                wanted = labels == CLASSES.index(yolo.classes[number])
                lowest = min(lowest, (mask & wanted).sum() / (mask | wanted).sum())
    assert images == len(expected)
    with open(data / "yolo/polygons.csv", newline="") as file:
        reported = min(float(row["iou"]) for row in csv.DictReader(file))
    assert abs(lowest - reported) < 0.02, (lowest, reported)
    return f"supervision {version('supervision')}: COCO exact; lowest IoU of YOLO {lowest:.4f}, reported {reported:.4f}"


def check_ultralytics(data: Path) -> str:
    """Check that Ultralytics reads the masks of the run, and that its converter accepts the COCO export."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(data / "ultralytics")}
    from ultralytics.data.converter import convert_coco
    from ultralytics.data.dataset import SemanticDataset, YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygons2masks

    expected = truth(data)
    polygons = check_det_dataset(str(data / "yolo/data.yaml"))
    semantic = check_det_dataset(str(data / "semantic/data.yaml"))
    lowest, images = 1.0, 0
    for part in ("train", "val"):
        for label in YOLODataset(
            img_path=polygons[part], data=polygons, task="segment", augment=False, imgsz=96
        ).labels:
            labels = expected[Path(label["im_file"]).stem]
            points = [(segment * labels.shape[::-1]).reshape(-1) for segment in label["segments"]]
            masks = polygons2masks(labels.shape, points, color=1)
            for mask, number in zip(masks, label["cls"].ravel(), strict=True):
                wanted = labels == CLASSES.index(polygons["names"][int(number)])
                found = np.asarray(mask) > 0
                lowest = min(lowest, (found & wanted).sum() / (found | wanted).sum())
        for item in SemanticDataset(img_path=semantic[part], data=semantic, augment=False, imgsz=96):
            assert (item["semantic_mask"].numpy() == expected[Path(item["im_file"]).stem]).all()
            images += 1
    with open(data / "yolo/polygons.csv", newline="") as file:
        reported = min(float(row["iou"]) for row in csv.DictReader(file))
    assert abs(lowest - reported) < 0.02, (lowest, reported)
    assert images == len(expected)
    shutil.rmtree(data / "converted", ignore_errors=True)
    convert_coco(str(data / "coco/annotations"), str(data / "converted"), use_segments=True, cls91to80=False)
    assert {path.stem for path in (data / "converted/labels").rglob("*.txt")} == set(expected)
    text = f"lowest IoU of polygons {lowest:.4f}, reported {reported:.4f}; semantic masks exact; COCO converted"
    return f"ultralytics {version('ultralytics')}: {text}"


def check_datumaro(data: Path) -> str:
    """Check that datumaro finds the subsets and all images of each layout."""
    import datumaro

    expected = truth(data)
    found = []
    for folder, layout in (("coco", "coco"), ("panoptic", "coco_panoptic"), ("voc", "voc_segmentation")):
        dataset = datumaro.Dataset.import_from(str(data / folder), layout)
        names = {item.id.rpartition("/")[2] for item in dataset}
        assert names == set(expected), (layout, names)
        masks = sum(len(item.annotations) for item in dataset)
        assert masks >= len(expected), layout
        found.append(f"{layout} ({', '.join(sorted(dataset.subsets()))}; {masks} masks)")
    return f"datumaro {version('datumaro')}: {', '.join(found)}"


def check_fiftyone(data: Path) -> str:
    """Check that FiftyOne reads COCO as detections, and PNGs as masks with targets."""
    os.environ["FIFTYONE_DATABASE_DIR"] = str(data / "fiftyone")
    import fiftyone

    expected = truth(data)
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.COCODetectionDataset,
        data_path=str(data / "coco/images/train"),
        labels_path=str(data / "coco/annotations/instances_train.json"),
        label_types="segmentations",
        label_field="labels",
    )
    for sample in dataset:
        labels = expected[Path(sample.filepath).stem]
        for detection in sample.labels.detections:
            assert detection.mask.sum() == (labels == CLASSES.index(detection.label)).sum()
    masks = fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.ImageSegmentationDirectory,
        data_path=str(data / "png/images"),
        labels_path=str(data / "png/labels"),
        label_field="labels",
    )
    names = json.loads((data / "png/id2label.json").read_text())
    masks.default_mask_targets = {int(number): name for number, name in names.items()}
    for sample in masks:
        name = str(Path(sample.filepath).relative_to(data / "png/images").with_suffix("")).replace("/", "--")
        assert (sample.labels.get_mask() == expected[name]).all()
    assert len(masks) == len(expected)
    return f"fiftyone {version('fiftyone')}: {len(dataset)} images of COCO, {len(masks)} of PNGs"


def check_label_studio(data: Path) -> str:
    """Check that Label Studio imports the tasks over its API, and serves the copied images."""
    root = data / "label-studio"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root),
        "LABEL_STUDIO_BASE_DATA_DIR": str(data / "label-studio-data"),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    words = f"start --no-browser --port {port} --username a@b.c --password password --user-token {'t' * 40}".split()
    program = str(Path(sys.executable).with_name("label-studio"))
    with open(data / "label-studio.log", "wb") as log:
        server = subprocess.Popen([program, *words], env=environment, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"

    def ask(path: str, body: object = None) -> bytes:
        headers = {"Authorization": f"Token {'t' * 40}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, payload, headers)) as answer:
            return answer.read()

    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                ask("/health")
                break
            except OSError:
                assert server.poll() is None, "Label Studio ended; see label-studio.log"
                assert time.monotonic() < deadline, "Label Studio did not start"
                time.sleep(1)
        config = (root / "interface.xml").read_text()
        project = json.loads(ask("/api/projects/", {"title": "diffseg", "label_config": config}))["id"]
        ask("/api/storages/localfiles", {"project": project, "path": str(root / "images"), "use_blob_urls": False})
        tasks = [task for path in sorted((root / "tasks").iterdir()) for task in json.loads(path.read_text())]
        ask(f"/api/projects/{project}/import", tasks)
        listed = json.loads(ask(f"/api/tasks?project={project}&fields=all"))["tasks"]
        assert len(listed) == len(tasks) == len(truth(data))
        for task in listed:
            url = task["data"]["image"]
            path = urllib.parse.unquote(url.partition("?d=")[2])
            assert ask(url) == (root / path).read_bytes()
            assert task["total_predictions"] == 1
    finally:
        server.terminate()
        server.wait()
    return f"label-studio {version('label-studio')}: {len(listed)} tasks imported, all images served"


if __name__ == "__main__":
    print(globals()[f"check_{sys.argv[1]}"](Path(sys.argv[2])))
