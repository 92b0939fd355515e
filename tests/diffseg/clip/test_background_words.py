"""Background words beside the names that a CLIP chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffseg.settings import settings_of
from diffseg.signal_recorder import SignalRecorder

PROBABILITY = {"dog": 0.1, "car": 0.2, "sky": 0.3, "wall": 0.4}


class PlantedClip:
    """Gives each text its planted probability, and notes whether it got distractors of its own."""

    distractors: list[Any]

    def __init__(self) -> None:
        self.distractors = []

    def probabilities(
        self, pixels: torch.Tensor, texts: Sequence[Sequence[str]], distractors: Any, *, settings: Any, guide: Any
    ) -> torch.Tensor:
        self.distractors.append(distractors)
        found = torch.zeros(len(texts), max(map(len, texts)), 2, 2)
        for image, of_image in enumerate(texts):
            for place, text in enumerate(of_image):
                found[image, place] = PROBABILITY[text.casefold()]
        return found


def test_background_words_follow_the_names_and_a_word_that_is_a_name_is_0() -> None:
    clip, unused = PlantedClip(), None
    settings = settings_of(background_words=("sky", "wall"), prompt="empty")
    recorder = SignalRecorder(unused, settings, timestep=300, needs=frozenset({"clip"}), clip=clip)  # type: ignore[arg-type]
    maps = recorder._clip_probabilities(torch.zeros(2, 3, 16, 16), [("dog",), ("Sky", "car")], None)
    assert maps.shape == (2, 4, 2, 2)
    expected = torch.tensor([[0.1, 0.0, 0.3, 0.4], [0.3, 0.2, 0.0, 0.4]])
    torch.testing.assert_close(maps, expected[..., None, None].expand(2, 4, 2, 2))
    assert clip.distractors == [()], "the words take the place of the CLIP's own distractors"
