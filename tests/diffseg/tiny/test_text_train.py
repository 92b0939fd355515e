"""The losses of the text model against closed forms; its training reduces them and resumes after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from recipe_options import recipe_options
from torch import nn
from transformers import CLIPTextModel
from warm import WarmCommand

from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.tiny.recipe.model import build_networks, empty_context
from diffseg.tiny.recipe.objective import RowRecorder, class_targets, naming_loss
from diffseg.tiny.recipe.settings import TrainingStage
from diffseg.tiny.recipe.text_model import TEXT_WIDTH, build_text_encoder, build_text_unet
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT, TextRecipe
from diffseg.tiny.recipe.tokenizer import caption_tokenizer
from diffseg.tiny.recipe.train_text import start_from, train_text
from diffseg.tiny.recipe.training_state import load_state
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption

WORDS = caption_tokenizer()
CAPTION = Caption((("sand", NOUNS.index("sand")), ("and", -1), ("lava", NOUNS.index("lava"))))

MINI = TextRecipe(
    size=128,
    captioned=6,
    scenes=3,
    stages=(
        TrainingStage(scenes="captioned", steps=6, batch=4, crop=0.5, lr=(8e-4, 4e-4), warmup=2, hold=3, queries=16),
        TrainingStage(scenes="captioned", steps=2, batch=2, lr=(8e-4, 0.0), queries=16),
        TrainingStage(scenes="captioned", steps=1, batch=2, lr=(6e-4, 0.0), queries=16, clean_share=0.75),
        TrainingStage(
            scenes="captioned",
            steps=1,
            batch=8,
            crop=0.5,
            lr=(8e-4, 8e-4),
            queries=16,
            timesteps="uniform",
            text_free=0.125,
        ),
        TrainingStage(scenes="captioned", steps=1, batch=2, lr=(8e-4, 5e-4), queries=16, timesteps="uniform"),
        TrainingStage(scenes="captioned", steps=1, batch=2, lr=(5e-4, 0.0), queries=16, timesteps="uniform"),
        TrainingStage(scenes="captioned", steps=1, batch=2, lr=(7e-4, 0.0), queries=16, timesteps="uniform"),
    ),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> nn.ModuleDict:
    return train_text(MINI, CHECKPOINT, tmp_path_factory.mktemp("uninterrupted"))


def test_a_killed_training_resumes_to_the_same_weights(uninterrupted: nn.ModuleDict, tmp_path: Path) -> None:
    program = ["diffseg.tiny.recipe.train_text", f"--out={tmp_path}", f"--checkpoint={tmp_path}/made", "--save-every=1"]
    command = ["killed_at_rename", "*/text.pt", "2", *program, *recipe_options(MINI, TextRecipe())]
    assert WarmCommand(*command, variables=os.environ).wait(540).returncode == -signal.SIGKILL
    assert 0 < load_state(tmp_path / "text.pt") < MINI.steps
    resumed = train_text(MINI, CHECKPOINT, tmp_path, save_every=4)
    for (name, value), expected in zip(resumed.state_dict().items(), uninterrupted.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_a_training_continues_from_a_checkpoint_unless_it_has_a_state(tmp_path: Path) -> None:
    start_from(TEXT_CHECKPOINT, TextRecipe(), CHECKPOINT, tmp_path)
    networks = nn.ModuleDict(
        {
            "unet": UNet2DConditionModel.from_pretrained(TEXT_CHECKPOINT / "unet", use_safetensors=True).float(),
            "text": build_text_encoder(WORDS, 1),
        }
    )
    expected = {name: value.clone() for name, value in networks["unet"].state_dict().items()}
    assert load_state(tmp_path / "text.pt", networks=networks) == TextRecipe().steps
    for name, value in networks["unet"].state_dict().items():
        assert torch.equal(value, expected[name]), name
    text = CLIPTextModel.from_pretrained(TEXT_CHECKPOINT / "text_encoder", use_safetensors=True).float()
    for name, value in networks["text"].state_dict().items():
        assert torch.equal(value, text.state_dict()[name]), name
    before = (tmp_path / "text.pt").read_bytes()
    start_from(CHECKPOINT / "missing", TextRecipe(), CHECKPOINT, tmp_path)
    assert (tmp_path / "text.pt").read_bytes() == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"recipe\.json.*captioned"):
        train_text(MINI, CHECKPOINT, tmp_path)
    with pytest.raises(ValueError, match="text_free"):
        TrainingStage(scenes="captioned", steps=1, batch=8, lr=(8e-4, 8e-4), text_free=1.0)
    assert [stage.text_free_count for stage in TextRecipe().stages] == [6, 3, 3, 2, 1, 1, 1]


def naming_loss_of(unet: UNet2DConditionModel, text: nn.Module) -> float:
    """Return the naming loss on an image that is half sand and half lava, each of constant latents."""
    classes = torch.full((1, 32, 32), NOUNS.index("sand"))
    classes[:, :, 16:] = NOUNS.index("lava")
    latents = torch.zeros(1, 4, 16, 16)
    latents[..., 8:] = 1
    ids, token_classes = WORDS.encode(CAPTION)
    queries = torch.arange(0, 256, 5)[None]
    recorder = RowRecorder().attach(unet)
    recorder.start(queries, 16)
    with torch.no_grad():
        unet(latents, 300, text(torch.from_numpy(ids)[None]).last_hidden_state)
    named = torch.zeros(1, len(NOUNS), dtype=torch.bool)
    named[0, list(CAPTION.classes)] = True
    target = class_targets(classes, named, queries, 16)
    return float(naming_loss(recorder, torch.from_numpy(token_classes)[None], target))


def test_training_reduces_the_naming_loss(uninterrupted: nn.ModuleDict) -> None:
    unet = UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet", use_safetensors=True)
    before = naming_loss_of(build_text_unet(unet.float(), MINI.seed), build_text_encoder(WORDS, MINI.seed))
    assert naming_loss_of(uninterrupted["unet"], uninterrupted["text"]) < 0.8 * before


def test_before_training_captions_do_not_change_the_output() -> None:
    unet = UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet", use_safetensors=True).float()
    text = build_text_encoder(WORDS, 0)
    latents = torch.randn(2, 4, 16, 16)
    ids = torch.from_numpy(np.stack([WORDS.encode(caption)[0] for caption in (Caption(), CAPTION)]))
    with torch.no_grad():
        context = text(ids).last_hidden_state
        output = build_text_unet(unet, 0)(latents, 300, context).sample
        torch.testing.assert_close(output, unet(latents, 300, empty_context(2)).sample, rtol=0, atol=2e-5)
    assert not torch.allclose(context[0], context[1])


def test_the_recorded_rows_are_those_of_the_layers() -> None:
    unet = build_text_unet(build_networks(1)[1], 0)
    latents, context = torch.randn(2, 4, 16, 16), torch.randn(2, 7, TEXT_WIDTH)
    queries = torch.tensor([[0, 17, 255], [1, 2, 3]])
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    layer_inputs: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda attention, inputs: layer_inputs.append(inputs[0]))
    recorder = RowRecorder().attach(unet)
    recorder.start(queries, 16)
    with torch.no_grad():
        unet(latents, 300, context)
        heads = [layer.head_to_batch_dim(part) for part in (layer.to_q(layer_inputs[0]), layer.to_k(context))]
        expected = layer.get_attention_scores(*heads).unflatten(0, (2, -1)).mean(1)
    assert {side: len(rows) for side, rows in recorder.token_rows.items()} == {16: 5, 8: 5, 4: 5, 2: 1}
    torch.testing.assert_close(recorder.token_rows[16][0], expected.gather(1, queries[..., None].expand(-1, -1, 7)))


def test_targets_are_shares_of_the_named_classes_and_of_the_background() -> None:
    classes = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]]])
    named = torch.tensor([[True, True, False]])
    target = class_targets(classes, named, torch.tensor([[0, 1, 3]]), 2)
    assert target[0].tolist() == [[0.75, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_the_naming_loss_agrees_with_brute_force() -> None:
    """Two of three classes are named, the second by two tokens; there are three resolutions."""
    token_classes = torch.tensor([[-1, 0, -1, 2, 2, -1]])
    recorder = RowRecorder(queries=torch.zeros(1, 4, dtype=torch.int64), side=8)
    recorder.token_rows = {8: list(torch.rand(2, 1, 4, 6).softmax(-1)), 4: [torch.rand(1, 4, 6).softmax(-1)]}
    recorder.token_rows[2] = [torch.full((1, 4, 6), torch.nan)]  # the coarsest resolution is ignored
    target = torch.rand(1, 4, 4).softmax(-1) * torch.tensor([1, 0, 1, 1])
    target /= target.sum(-1, keepdim=True)

    def divergence(layers: list[torch.Tensor]) -> float:
        total = 0.0
        for query in range(4):
            mean = [float(np.mean([float(layer[0, query, token]) for layer in layers])) for token in range(6)]
            shares = {0: mean[1], 2: mean[3] + mean[4], 3: mean[0] + mean[2] + mean[5]}
            expected = target[0, query].double()
            total += sum(float(expected[c] * (expected[c].log() - np.log(share))) for c, share in shares.items())
        return total / 4

    expected = divergence(recorder.token_rows[8] + recorder.token_rows[4])
    expected += 0.3 * (divergence(recorder.token_rows[8]) + divergence(recorder.token_rows[4])) / 2
    assert naming_loss(recorder, token_classes, target).item() == pytest.approx(expected, rel=1e-4)


def test_the_naming_loss_is_zero_for_perfect_rows_and_for_empty_captions() -> None:
    recorder = RowRecorder(queries=torch.zeros(1, 2, dtype=torch.int64), side=2)
    perfect = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    recorder.token_rows = {side: [perfect] for side in (2, 1)}
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert naming_loss(recorder, torch.tensor([[-1, 0, -1]]), target).item() == pytest.approx(0, abs=1e-6)
    background = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    recorder.token_rows = {side: [torch.rand(1, 2, 3).softmax(-1)] for side in (2, 1)}
    assert naming_loss(recorder, torch.tensor([[-1, -1, -1]]), background).item() == pytest.approx(0, abs=1e-6)
