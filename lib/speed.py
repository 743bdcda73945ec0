"""What makes a step faster and leaves its numbers as they are; tests/test_speed.py holds each against the plain form.

Measured on two cores, GPT-2 117M, rows of 2,048 tokens: notebook 11 and `python -m lib bench`.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation

CPU_NUMBERS = 2**20  # float32 numbers of logits worked on at a time: 4 MB stay in a cache
GPU_NUMBERS = 2**26  # a GPU wants fewer, larger kernels


class _SummedCrossEntropy(torch.autograd.Function):
    """The float32 copy of the logits, its softmax and its gradient exist for a few rows at a time; the gradient
    takes the place of the logits, which nothing else needs once the loss is known.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:  # (N, V), (N,) -> ()
        ctx.save_for_backward(logits, targets)
        return _nats(logits, targets)

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, targets = ctx.saved_tensors
        rows = rows_at_a_time(logits)
        for x, y in zip(logits.split(rows), targets.split(rows), strict=True):
            p = x.float().softmax(-1)
            p[torch.arange(len(y), device=y.device), y] -= 1
            x.copy_(p.mul_(grad))
        return logits, None


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    rows = rows_at_a_time(logits)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.stack([F.cross_entropy(x.float(), y, reduction="sum") for x, y in parts]).sum()


def rows_at_a_time(logits: Tensor) -> int:
    """Rows of `logits` (N, V) whose float32 copy stays in a cache."""
    numbers = GPU_NUMBERS if logits.is_cuda else CPU_NUMBERS
    return max(numbers // logits.shape[1], 1)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -ln p(target) in nats, computed in float32. logits (N, V) of any float type, targets (N,) -> ().

    Backward overwrites `logits`: they can't be read after it, and a second backward raises RuntimeError.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _SummedCrossEntropy.apply(logits, targets)
    return _nats(logits, targets)


def fuse_activations(model: nn.Module) -> nn.Module:
    """GPT-2's GELU by torch's one kernel in place of transformers' eight operations; the same tanh form.

    In bfloat16 the one kernel rounds once. No parameter and no name in a checkpoint changes.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
    return model


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        keep = _keep(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - _steps(p) / STEPS)
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (keep,) = ctx.saved_tensors
        return grad.mul(keep).mul_(ctx.scale), None


STEPS = 2**16  # 16 random bits an element: p is met to 1 / 131,072, and the scale fits p as it is met


def _steps(p: float) -> int:
    return round(p * STEPS)


def _keep(shape: torch.Size, p: float) -> Tensor:
    """Bool mask, False with probability p, from torch's global generator: four elements to a 64-bit number."""
    n = math.prod(shape)
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[:n] >= _steps(p) - STEPS // 2).view(shape)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on a CPU with a quarter of its random numbers, which one thread draws while the other waits."""
    if not training or not p:
        return x
    return F.dropout(x, p) if x.is_cuda or p > 0.99 else _Dropped.apply(x, p)


class Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def fuse_dropout(model: nn.Module) -> nn.Module:
    """`Dropout` in place of torch's: the same distribution, other draws. No parameter changes."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    return model


SHORT = 512  # tokens; the scores kept for backward are 6 MB a layer of GPT-2 for such a document


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, p: float = 0.0, grouped: bool = False
) -> Tensor:
    """Causal attention of one short document, q (1, H, T, D), k and v (1, H_kv, T, D) -> (1, H, T, D).

    torch's SDPA, but for a training on a CPU in half precision or with dropout `p`: three products and a softmax take
    a third of the time of its backward there (T = 150: 2.3 against 7.0 ms), and dropout has no fused form.
    """
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda or q.shape[2] > SHORT or not torch.is_grad_enabled() or not (half or p):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=p, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    length, size = q.shape[2:]
    future = torch.full((length, length), -math.inf, dtype=q.dtype).triu_(1)
    scale = size**-0.5 if scale is None else scale
    scores = torch.baddbmm(future.expand(q.shape[1], -1, -1), q[0], k[0].mT, alpha=scale)
    return (dropout(scores.softmax(-1), p).to(v.dtype) @ v[0])[None]


ONEDNN_ROWS = 128  # below, putting the weights into oneDNN's own order costs more than it gains


@contextmanager
def fast_float32(rows: int) -> Iterator[None]:
    """Inside, float32 products of `rows` rows on a CPU go to oneDNN where that is no less exact than MKL.

    MKL is slow on AMD's processors: 1.7 times the seconds for GPT-2's output layer on an EPYC. torch has one switch
    for it, which elsewhere permits bfloat16 inside the product: there it stays off.
    """
    before = torch.get_float32_matmul_precision()
    if rows < ONEDNN_ROWS or not _onednn_keeps_float32():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _onednn_keeps_float32() -> bool:
    """Whether a product under "medium" is that of float32 on this machine, tried on one."""
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((256, 512), (1024, 512)))
    before, exact = torch.get_float32_matmul_precision(), x.double() @ w.double().T
    try:
        torch.set_float32_matmul_precision("medium")
        return bool(((x @ w.T) - exact).abs().max() < 1e-3)  # bfloat16 inside: 0.1
    finally:
        torch.set_float32_matmul_precision(before)
