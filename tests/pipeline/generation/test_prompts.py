"""Files of prompts in each format, on a disk and in a store, and files that hold no prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.generation.prompts import PromptRow, PromptSource, read_prompts
from pipeline.storage import SourceError, Storage

ROWS: list[dict[str, Any]] = [
    {"prompt": "a dog, on grass", "classes": ["dog", "grass"], "count": 3, "key": "first"},
    {"prompt": 'a "cat"', "classes": ["cat"], "count": None, "key": None},
]


def read(path: Path, data: bytes) -> list[PromptRow]:
    path.write_bytes(data)
    return read_prompts(str(path), Storage(url="."))


def values(rows: list[PromptRow]) -> list[tuple[Any, ...]]:
    return [(row.prompt, row.classes, row.count, row.key) for row in rows]


def test_json_lines_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    expected = [tuple(row.values()) for row in ROWS]
    lines = "\n".join(json.dumps({**row, "further": 1}) for row in ROWS)
    rows = read(tmp_path / "p.jsonl", lines.encode())
    assert values(rows) == expected
    assert [row.place for row in rows] == ["line 1", "line 2"]
    pq.write_table(pa.Table.from_pylist([{**row, "further": b"x"} for row in ROWS]), tmp_path / "p.parquet")
    assert values(read_prompts(str(tmp_path / "p.parquet"), Storage(url="."))) == expected


def test_a_csv_file_has_quoted_texts_and_empty_cells(tmp_path: Path) -> None:
    text = '\ufeffcount,prompt,classes,other\n3,"a dog, on grass","dog,grass",x\n,"a ""cat""",,\n'
    assert values(read(tmp_path / "p.CSV", text.encode())) == [
        ("a dog, on grass", "dog,grass", "3", None),
        ('a "cat"', None, None, None),
    ]


def test_lines_of_a_text_file_are_prompts_and_blank_ones_are_not(tmp_path: Path) -> None:
    rows = read(tmp_path / "p.txt", b"a dog\r\n\n  \na cat, sleeping")
    assert [(row.place, row.prompt.strip()) for row in rows] == [("line 1", "a dog"), ("line 4", "a cat, sleeping")]


def test_prompts_are_read_from_a_store(tmp_path: Path) -> None:
    Storage(url=f"memory://{tmp_path.name}").write_bytes("p.txt", b"a dog")
    (row,) = read_prompts(f"memory://{tmp_path.name}/p.txt", Storage(url="."))
    assert row.prompt == "a dog"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.docx", b"", "with the ending .txt, .csv"),
        ("p.txt", b"\n\n", "holds no prompt"),
        ("p.txt", b"\xff\xfe", "cannot be read as text"),
        ("p.csv", b"caption\na dog\n", "there is no column prompt; the columns are caption"),
        ("p.csv", b'prompt\n"a dog', "cannot be read as csv"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("p.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("p.jsonl", b'"a dog"', 'line 1 holds "a dog"; expected an object'),
        ("p.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name, data)


def test_a_missing_or_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="there is no such file"):
        read_prompts(str(tmp_path / "p.txt"), Storage(url="."))
    monkeypatch.setattr("pipeline.generation.prompts.MAX_BYTES", 4)
    with pytest.raises(SourceError, match="is larger than 4 bytes"):
        read(tmp_path / "p.txt", b"a dog")


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.prompts.MAX_UNPACKED_BYTES", 10_000)
    pq.write_table(pa.table({"prompt": ["dog " * 5000]}), tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < 10_000
    with pytest.raises(SourceError, match="unpacks to 2"):
        read_prompts(str(tmp_path / "p.parquet"), Storage(url="."))


def test_templates_and_counts_are_checked() -> None:
    for template in ("a dog", "{} and {}"):
        with pytest.raises(ValueError, match=r"expected one \{\}"):
            PromptSource(template=template)
    with pytest.raises(ValueError, match="count 0"):
        PromptSource(count=0)
