"""A WordNet of a few nouns, in the files of the published one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SENSES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "entity": (("entity",), ()),
    "person": (("person", "someone"), ("entity",)),
    "adult": (("adult",), ("person",)),
    "man": (("man",), ("adult",)),
    "cyclist": (("cyclist", "bicycle_rider"), ("person",)),
    "animal": (("animal",), ("entity",)),
    "dog": (("dog", "domestic_dog"), ("animal",)),
    "puppy": (("puppy",), ("dog",)),
    "rodent": (("mouse",), ("animal",)),
    "car": (("car", "automobile"), ("entity",)),
    "device": (("mouse",), ("entity",)),
}
"""The lemmas of each sense, and its more general senses. The first sense of a word is the most frequent one."""


def write_wordnet(folder: Path) -> Path:
    """Write the corpus below a folder of NLTK's data, and return that folder."""
    corpus = folder / "corpora" / "wordnet"
    corpus.mkdir(parents=True)
    parts = ("adj", "adv", "noun", "verb")
    names = [f"{kind}.{part}" for kind in ("index", "data") for part in parts] + [f"{part}.exc" for part in parts]
    for name in (*names, "cntlist.rev", "index.sense"):
        (corpus / name).write_text("")
    (corpus / "lexnames").write_text("00\tnoun.Tops\t1\n")
    offsets: dict[str, int] = {}
    data = ""
    for sense, (lemmas, general) in SENSES.items():
        offsets[sense] = len(data)
        pointers = "".join(f" @ {offsets[name]:08d} n 0000" for name in general)
        words = "".join(f" {lemma} 0" for lemma in lemmas)
        data += f"{offsets[sense]:08d} 00 n {len(lemmas):02x}{words} {len(general):03d}{pointers} | a gloss  \n"
    (corpus / "data.noun").write_text(data)
    senses_of: dict[str, list[int]] = {}
    for sense, (lemmas, _) in SENSES.items():
        for lemma in lemmas:
            senses_of.setdefault(lemma, []).append(offsets[sense])
    index = [f"{lemma} n {len(o)} 0 {len(o)} 0 {' '.join(f'{n:08d}' for n in o)}" for lemma, o in senses_of.items()]
    (corpus / "index.noun").write_text("\n".join(sorted(index)) + "\n")
    return folder
