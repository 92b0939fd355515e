"""Read a checkpoint in a single .safetensors file, in the original layout of SD 1.x, SD 2.x and SDXL.

diffusers' functions recognise the kind of model from the names of the weights, and convert them. Its `from_single_file`
would fetch the kind's configuration from the hub, and ends without a name where a weight is missing. The configurations
of the three kinds are therefore included in this package, but the vocabulary of CLIP, which all of them use, is not.
Nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
    infer_diffusers_model_type,
)
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffseg.model.layout import CheckpointError
from diffseg.model.text import TextEncoders
from diffseg.model.text_encoders import combine

CONFIGS = Path(__file__).with_name("single_file_configs")
"""A folder for each kind of model, with the configurations of its parts in the diffusers layout."""

KINDS: Mapping[str, str] = {"v1": "sd1", "v2": "sd2", "xl_base": "sdxl", "playground-v2-5": "sdxl"}
"""The folder of CONFIGS for each kind of model that diffusers recognises and DiffSeg supports."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}
"""How the names of the weights of each part begin."""

PLAYGROUND_SCALING_FACTOR = 0.5
"""Scaling factor of Playground v2.5, as in diffusers. The file holds the mean and standard deviation of its latents."""

COSXL_SIGMA = "edm_vpred.sigma_max"
"""A weight of CosXL, by which ComfyUI recognises that a model of SDXL is in the formulation of EDM."""

PADDING: Mapping[str, tuple[str, ...]] = {"sd1": ("<|endoftext|>",), "sd2": ("!",), "sdxl": ("<|endoftext|>", "!")}
"""The padding token of each text encoder of a kind."""

TOKENIZER = "openai/clip-vit-large-patch14"
"""A repository with the tokenizer of all kinds."""

START_ID, END_ID, PADDING_IDS = 49406, 49407, {"<|endoftext|>": 49407, "!": 0}
"""Ids of CLIP's start token, end token and padding tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleFile:
    """The weights of a single file, and the kind of the model.

    Attributes:
        file: The file.
        kind: A folder of CONFIGS.
        weights: Tensors by their names in the original layout, which are mapped from the file.
    """

    file: Path
    kind: str
    weights: dict[str, torch.Tensor]

    @classmethod
    def read(cls, file: Path) -> SingleFile:
        """Open a file and recognise its kind.

        Raises:
            CheckpointError: It is not a safetensors file, or not a whole checkpoint of a supported kind.
        """
        try:
            weights = load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{file}: does not load as safetensors: {error}") from error
        for part, beginnings in REQUIRED.items():
            if not any(name.startswith(beginnings) for name in weights):
                raise CheckpointError(
                    f"{file}: holds no {part} (names that begin with {' or '.join(beginnings)}). A single file must be "
                    "a whole checkpoint in the original layout; for a part of a diffusers folder, give that folder"
                )
        if guidance := next((name for name in weights if ".cond_proj." in name), None):
            raise CheckpointError(
                f"{file}: {guidance} embeds a guidance scale, as in latent consistency models, which are read from "
                "diffusers folders only"
            )
        recognised = infer_diffusers_model_type(weights)
        if recognised not in KINDS:
            raise CheckpointError(
                f"{file}: diffusers recognises its kind as {recognised}; supported single files are SD 1.x, SD 2.x and "
                "SDXL base models for text to image, and Playground v2.5"
            )
        return cls(file=file, kind=KINDS[recognised], weights=weights)

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """Return the UNet. Raises CheckpointError if a weight is missing or has another shape."""
        return self._load(
            "unet", dtype, lambda: self._convert(UNet2DConditionModel, "unet", convert_ldm_unet_checkpoint)
        )

    @property
    def is_edm(self) -> bool:
        """Whether the network is in the formulation of EDM: Playground v2.5 and CosXL."""
        return self._is_playground or COSXL_SIGMA in self.weights

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """What differs from Stable Diffusion's usual sampling method, as in the configurations of diffusers.

        SD 2 is taken to be the model of 768 px, as the included configuration of its UNet is. `v_pred` and `ztsnr` are
        the weights by which makers of SDXL models mark v-prediction and a noise schedule that ends without any signal.
        """
        if self._is_playground:
            return {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": PLAYGROUND_SCALING_FACTOR}
        if COSXL_SIGMA in self.weights:
            most = self.weights[COSXL_SIGMA].item()
            predicts = {"prediction_type": "v_prediction", "sigma_data": 1.0}
            return {"_class_name": "EDMEulerScheduler", "sigma_max": most, **predicts}
        changes: dict[str, Any] = {}
        if self.kind == "sd2" or "v_pred" in self.weights:
            changes["prediction_type"] = "v_prediction"
        if "ztsnr" in self.weights:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return changes

    @property
    def _is_playground(self) -> bool:
        return "edm_mean" in self.weights and "edm_std" in self.weights

    def vae(self, dtype: torch.dtype, *, decoder: bool = False) -> AutoencoderKL:
        """Return the autoencoder, with or without its decoder. Raises CheckpointError as `unet` does."""
        changes: dict[str, Any] = {}
        if self._is_playground:
            changes = {
                "latents_mean": self.weights["edm_mean"].float().flatten().tolist(),
                "latents_std": self.weights["edm_std"].float().flatten().tolist(),
                "scaling_factor": PLAYGROUND_SCALING_FACTOR,
            }

        def load() -> AutoencoderKL:
            vae = self._convert(AutoencoderKL, "vae", convert_ldm_vae_checkpoint, **changes)
            if not decoder:
                vae.decoder = vae.post_quant_conv = None
            return vae

        return self._load("vae", dtype, load)

    def text_encoders(self, unet: UNet2DConditionModel) -> TextEncoders:
        """Return the text encoders in float32 with their tokenizers. Raises CheckpointError as `unet` does."""
        # transformers is slow to import, and the embedded model `tiny` has no text encoder.
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        parts = []
        for suffix, model_class, padding in zip(
            ("", "_2"), (CLIPTextModel, CLIPTextModelWithProjection), PADDING[self.kind], strict=False
        ):
            name = f"text_encoder{suffix}"
            model = self._load(name, torch.float32, partial(self._text_model, name, model_class))
            parts.append((clip_tokenizer(padding), model))
        return combine(self.file, parts, unet)

    def _convert(self, model_class: Any, part: str, convert: Callable[..., Any], **changes: Any) -> Any:
        """Return a model of the included configuration with converted weights; missing weights stay on device meta."""
        config = model_class.load_config(str(CONFIGS / self.kind), subfolder=part, local_files_only=True) | changes
        with init_empty_weights():
            model = model_class.from_config(config)
        model.load_state_dict(convert(checkpoint=self.weights, config=config), strict=False, assign=True)
        return model

    def _text_model(self, part: str, model_class: Any) -> Any:
        return create_diffusers_clip_model_from_ldm(
            model_class,
            checkpoint=self.weights,
            config=str(CONFIGS / self.kind),
            subfolder=part,
            local_files_only=True,
        )

    def _load(self, part: str, dtype: torch.dtype, load: Callable[[], Any]) -> Any:
        """Load a part, check that no weight is missing, and convert it to a dtype."""
        try:
            model = load()
        except MemoryError:
            raise
        except Exception as error:  # the conversion raises errors of any class for missing weights
            raise CheckpointError(
                f"{part} of {self.file}: its weights do not fit those of {self.kind}: {type(error).__name__}: {error}"
            ) from error
        missing = [name for name, weight in model.named_parameters() if weight.is_meta]
        if missing:
            raise CheckpointError(
                f"{part} of {self.file}: the file lacks weights: {missing[0]} is one of {len(missing)}"
            )
        return torch.nn.Module.to(model, dtype).eval()


def clip_tokenizer(padding: str) -> Any:
    """Return the tokenizer of CLIP, which all three kinds use. A single file holds none.

    The tokenizer is taken from the Hugging Face cache. Without it, only the empty prompt can be read.

    Args:
        padding: The padding token: the end token in SD 1.x, `!` in SD 2.x.
    """
    cached = try_to_load_from_cache(TOKENIZER, "vocab.json")
    if not isinstance(cached, str):
        return EmptyPromptTokenizer(padding)
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(cached).parent, pad_token=padding, model_max_length=77)


class EmptyPromptTokenizer:
    """Tokenizes the empty prompt with the three ids of CLIP that it needs, and refuses any other text.

    Args:
        padding: The padding token.
    """

    def __init__(self, padding: str) -> None:
        self.padding_id = PADDING_IDS[padding]

    def __call__(self, text: str, *, max_length: int, **_: Any) -> Any:
        """Return the ids of the empty prompt, int64 [1, max_length], as the attribute `input_ids`.

        Raises:
            CheckpointError: The text is not empty.
        """
        if text:
            raise CheckpointError(
                f"a single file holds no tokenizer, so names cannot be read. Download one into the Hugging Face cache "
                f"(hf download {TOKENIZER} vocab.json merges.txt), or use a diffusers folder"
            )
        ids = [START_ID, END_ID] + [self.padding_id] * (max_length - 2)
        return SimpleNamespace(input_ids=torch.tensor([ids]))
