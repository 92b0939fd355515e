"""A frozen text encoder that turns names into vectors, optionally with learnable tokens before the names.

It is the text encoder of a CLIP, or the first text encoder of a Stable Diffusion checkpoint. The vectors of a CLIP lie
in the space that its images share with texts. A Stable Diffusion checkpoint has no image encoder, so the vectors of its
text encoder match image features only after a trained projection.

Axes: T names, L tokens of a text, M learnable tokens, W features of a token, D features of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffseg.clip.clip import Clip, load_clip
from diffseg.model.files import TEXT_FILES, fingerprint
from diffseg.model.layout import CheckpointError, resolve
from diffseg.model.text_encoders import load_text_encoder


@dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
    """A frozen text encoder.

    Attributes:
        model: The network that holds it, of transformers or open_clip.
        sha256: Digest of its files.
        tokenize: From texts to the ids of their tokens, int64 [T, L], on the CPU.
        encode: From ids and the number of learnable tokens before the name to vectors, float32 [T, D].
        token_embedding: From ids to what the encoder reads, [T, L, W].
        clip: The CLIP; None for the encoder of a Stable Diffusion checkpoint.
    """

    model: Any
    sha256: str
    tokenize: Callable[[Sequence[str]], torch.Tensor]
    encode: Callable[[torch.Tensor, int], torch.Tensor]
    token_embedding: Any
    clip: Clip | None = None

    @property
    def width(self) -> int:
        """W, the number of features of a token."""
        return int(self.token_embedding.weight.shape[1])

    def vectors(self, names: Sequence[str], context: torch.Tensor | None = None) -> torch.Tensor:
        """Return the vectors of names on the device of the encoder, differentiable with respect to the context.

        Args:
            names: T names.
            context: Learnable tokens, float32 [M, W], between the start token and the name, instead of words such as
                "a photo of a" (Zhou et al., CoOp, IJCV 2022). None for the bare names.

        Returns:
            float32 [T, D], not normalised.

        Raises:
            ValueError: A name and the context together have more tokens than the encoder reads.
        """
        ids, device = self.tokenize(names), self.token_embedding.weight.device
        if context is None or not len(context):
            return self.encode(ids.to(device), 0)
        start, count = self._start(), len(context)
        # Tokenizers cut a text at the number of tokens that the encoder reads.
        longest = self.tokenize([" ".join(["a"] * 1000)]).shape[1]
        widened = torch.cat([ids[:, :start], ids[:, start : start + 1].expand(-1, count), ids[:, start:]], dim=1)
        cut = widened[:, longest:]  # may only be padding
        if cut.numel() and not (cut == widened[:, longest - 1 : longest]).all():
            raise ValueError(f"a name is too long: the encoder reads {longest} tokens, of which {count} are learnable")

        def replace(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
            tokens = context.to(embedded).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :start], tokens, embedded[:, start + count :]], dim=1)

        hook = self.token_embedding.register_forward_hook(replace)
        try:
            return self.encode(widened[:, :longest].to(device), count)
        finally:
            hook.remove()

    def _start(self) -> int:
        """Return the number of tokens before a name: 1 if the tokenizer adds a start token, else 0."""
        return int(self.tokenize([""])[0, 0] == self.tokenize(["a"])[0, 0])


def load_text_model(location: str) -> TextModel:
    """Load the text encoder of a CLIP or of a Stable Diffusion checkpoint in float32, from safetensors only.

    Args:
        location: An embedded model that reads text, or a folder or hub id: of a Stable Diffusion checkpoint in the
            layout of diffusers, or of a CLIP or SigLIP of transformers or open_clip.

    Raises:
        CheckpointError: There is no such model, or it has no text encoder that can be used here.
    """
    folder = resolve(location, files=TEXT_FILES)
    if not (folder / "model_index.json").is_file():
        return _of_clip(load_clip(location))
    if not (folder / "text_encoder").is_dir():
        raise CheckpointError(f"{location}: has no text encoder; expected a checkpoint that reads text, or a CLIP")
    tokenizer, model = load_text_encoder(folder)
    model.requires_grad_(False)
    longest = model.config.max_position_embeddings

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return tokenizer(list(texts), **options).input_ids

    def encode(ids: torch.Tensor, context: int) -> torch.Tensor:
        """Return the mean over the tokens of the name: in tiny-text the end token carries no information about it."""
        own = (ids == tokenizer.eos_token_id).cumsum(dim=1) == 0
        own[:, : 1 + context] = False
        weights = own[:, :, None] / own.sum(dim=1).clamp_min(1)[:, None, None]
        return (model(ids).last_hidden_state * weights).sum(dim=1)

    return TextModel(
        model=model,
        sha256=fingerprint(folder, TEXT_FILES),
        tokenize=tokenize,
        encode=encode,
        token_embedding=model.get_input_embeddings(),
    )


def _of_clip(clip: Clip) -> TextModel:
    """Return the text encoder of a CLIP. Raises CheckpointError."""
    layout = clip.layout
    if layout.token_embedding is None:
        raise CheckpointError("the text encoder of this open_clip model has no token embedding that can be replaced")
    return TextModel(
        model=layout.model,
        sha256=clip.sha256,
        tokenize=layout.tokenize,
        encode=lambda ids, _: layout.encode_tokens(ids),
        token_embedding=layout.token_embedding,
        clip=clip,
    )
