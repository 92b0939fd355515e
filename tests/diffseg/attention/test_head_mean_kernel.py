"""The kernel of the fused backend, interpreted on a CPU or compiled on a GPU, beside a softmax in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which comes with the extra test on Linux and x86-64")

from diffseg.attention import head_mean_kernel
from diffseg.attention.head_mean_kernel import add_head_mean

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
"""Where the kernel runs; conftest.py makes Triton interpret it where there is no GPU."""


def layer(
    batch: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys [B, H, P, D] with the strides of a projection [B, P, H·D]."""
    shapes = (batch, queries, heads, width), (batch, keys, heads, width)
    first, second = (torch.randn(shape, device=DEVICE).to(dtype).transpose(1, 2) for shape in shapes)
    return first, second


def expected_maps(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over heads of the softmax, float64 [B, P, K], and the log-sum-exp, float32 [B, H, P]."""
    products = queries.double() @ keys.double().transpose(2, 3) * scale
    return products.softmax(dim=-1).mean(dim=1), products.logsumexp(dim=-1).float()


class Float32Kernel:
    """Launches the kernel with bfloat16 as float32: the interpreter's products of bfloat16 are wrong."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            widened = [x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x for x in arguments]
            self.kernel[grid](*widened, **constants)

        return launch


WIDTHS = {"SD 1.x": (40, 80, 160), "SD 2.x and XL": (64,), "embedded": (16, 32, 40), "no multiple of 8": (5, 100)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("width", sorted({width for widths in WIDTHS.values() for width in widths}))
def test_the_mean_over_heads_agrees_with_a_softmax_in_float64(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HAS_GPU:
        monkeypatch.setattr(head_mean_kernel, "_add_head_mean", Float32Kernel(head_mean_kernel._add_head_mean))
    queries, keys = layer(2, 3, 24, 24, width, dtype)
    expected, lse = expected_maps(queries, keys, width**-0.5)
    total = torch.full((2, 24, 24), 0.25, device=DEVICE)
    add_head_mean(queries, keys, lse, width**-0.5, total)
    torch.testing.assert_close(total.double(), 0.25 + expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(1, 1), (16, 24), (head_mean_kernel.TILE_QUERIES + 2, head_mean_kernel.TILE_KEYS + 13), (6, 77)],
    ids=["one position", "less than a tile", "two tiles each way", "a prompt of 77 tokens"],
)
def test_any_number_of_queries_and_keys_is_recorded_and_nothing_beside_them(queries: int, keys: int) -> None:
    first, second = layer(1, 2, queries, keys, 40, torch.float32)
    expected, lse = expected_maps(first, second, 0.3)
    memory = torch.zeros(1, queries + 3, keys, device=DEVICE)
    padded = torch.cat([lse, torch.full((1, 2, 5), torch.inf, device=DEVICE)], dim=2)
    add_head_mean(first, second, padded, 0.3, memory[:, :queries])
    torch.testing.assert_close(memory[:, :queries].double(), expected, rtol=0, atol=1e-6)
    assert not memory[:, queries:].any()


def test_large_products_do_not_overflow_in_half_precision() -> None:
    queries, keys = (60 * x for x in layer(1, 2, 16, 16, 64, torch.float16))
    scale = 64**-0.5
    expected, lse = expected_maps(queries, keys, scale)
    assert lse.max() / scale > torch.finfo(torch.float16).max
    total = torch.zeros(1, 16, 16, device=DEVICE)
    add_head_mean(queries, keys, lse, scale, total)
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=2e-3)  # 2^-10 is the last bit of L at 10^4


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffseg.attention.head_mean_kernel import CHUNK_BYTES, TILE_KEYS, TILE_QUERIES, WARPS, _add_head_mean

for kind, size, capability in (("bf16", 2, 80), ("bf16", 2, 90), ("fp16", 2, 80), ("fp32", 4, 80)):
    constants = {"HEADS": 8, "CHANNELS": 40, "CHUNK": CHUNK_BYTES // size}
    constants |= {"TILE_ROWS": TILE_QUERIES, "TILE_COLUMNS": TILE_KEYS}
    kinds = {"queries": "*" + kind, "keys": "*" + kind, "lse": "*fp32", "total": "*fp32", "scale": "fp32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(_add_head_mean, {name: kinds.get(name, "i32") for name in _add_head_mean.arg_names}, constants)
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    print(compiled.metadata.shared, "mma" in compiled.asm["ptx"])
"""
SMALLEST_SHARED_MEMORY = 99 * 1024
"""Shared memory of a program on the smallest GPUs from compute capability 8.0 on (8.6 and 8.9)."""


def test_the_kernel_compiles_uses_tensor_cores_and_fits_the_shared_memory(tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler. Compiling needs no GPU, but a process that does not interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert max(int(shared) for shared, _ in lines) <= SMALLEST_SHARED_MEMORY
    assert [uses_tensor_cores for _, uses_tensor_cores in lines] == ["True", "True", "True", "False"]
