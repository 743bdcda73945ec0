"""What makes a step faster and leaves its numbers as they are (tests/test_fast.py holds each against the plain form),
and the memory that it takes. Measured by `python -m lib bench` and notebook 11: two cores, GPT-2 117M, rows of 2,048.
Two more stand where they belong: rows without padding in `packing`, the number format in `profile.autocast_dtype`."""

import contextlib
import ctypes
import functools
import gc
import math
import threading
from collections.abc import Callable, Iterator

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation

from lib import profile

CPU_NUMBERS = 2**20  # float32 numbers of logits worked on at a time: 4 MB stay in a cache
GPU_NUMBERS = 2**26  # a GPU wants fewer, larger kernels
STEPS = 2**16  # of dropout's probability: 16 random bits an element, and the scale fits p as it is met
ONEDNN_ROWS = 128  # below, putting the weights into oneDNN's own order costs more than it gains
SHORT = 512  # tokens; the scores kept for backward are 6 MB a layer of GPT-2 for such a document


def rows_at_a_time(logits: Tensor) -> int:
    """Rows of `logits` (N, V) whose float32 copy stays in a cache."""
    return max((GPU_NUMBERS if logits.is_cuda else CPU_NUMBERS) // logits.shape[1], 1)


class _SummedCrossEntropy(torch.autograd.Function):
    """Float32 logits, softmax and gradient exist for a few rows at a time; the gradient takes the logits' place. That
    of -ln softmax(x)[y] is softmax(x), less 1 at y: backward computes the softmax again, cheaper than keeping it."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        rows = rows_at_a_time(logits)
        parts = zip(logits.split(rows), targets.split(rows), strict=True)
        return torch.stack([F.cross_entropy(x.float(), y, reduction="sum") for x, y in parts]).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, targets = ctx.saved_tensors
        rows = rows_at_a_time(logits)
        for x, y in zip(logits.split(rows), targets.split(rows), strict=True):
            p = x.float().softmax(-1)
            p[torch.arange(len(y), device=y.device), y] -= 1
            x.copy_(p.mul_(grad))
        return logits, None


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -ln p(target) in nats, computed in float32; logits (N, V) of any float type, targets (N,) -> (). Backward
    overwrites `logits`: they can't be read after it, and a second backward raises RuntimeError."""
    return _SummedCrossEntropy.apply(logits, targets)


def fuse_activations(model: nn.Module) -> nn.Module:
    """GPT-2's GELU, tanh form, by torch's one kernel instead of eight; no parameter or name in a checkpoint changes."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())
    return model


def fuse_dropout(model: nn.Module) -> nn.Module:
    """`Dropout` in place of torch's: the same distribution, other draws. No parameter changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout  # the same attributes, another forward
    return model


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        n, steps = math.prod(x.shape), round(p * STEPS)
        # 16 bits an element, four to a number of torch's global generator; the lowest `steps` of 2^16 values drop it
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[:n] >= steps - STEPS // 2).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - steps / STEPS)
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (keep,) = ctx.saved_tensors
        return grad.mul(keep).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on a CPU with a quarter of its random numbers, which one thread draws while the other waits."""
    ours = training and 0 < p <= 0.99 and x.device.type == "cpu"
    return _Dropped.apply(x, p) if ours else F.dropout(x, p, training)


class Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, p=0.0, grouped=False) -> Tensor:
    """Causal attention of one short document, q (1, H, T, D), k and v (1, H_kv, T, D) -> (1, H, T, D).

    torch's SDPA, but for a training on a CPU in half precision or with dropout `p`: three products and a softmax take
    a third of the time of its backward there (T = 150: 2.3 against 7.0 ms), and dropout has no fused form."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type != "cpu" or q.shape[2] > SHORT or not torch.is_grad_enabled() or not (half or p):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=p, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    length, size = q.shape[2:]
    # scores and mask in one pass: baddbmm is future + scale * q k^T, and softmax makes 0 of -inf
    future = torch.full((length, length), -math.inf, dtype=q.dtype).triu_(1)
    scores = torch.baddbmm(future.expand(q.shape[1], -1, -1), q[0], k[0].mT, alpha=scale or size**-0.5)
    return (dropout(scores.softmax(-1), p).to(v.dtype) @ v[0])[None]


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """torch's float32 matmul precision inside; what it was, after."""
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision(name)
        yield


@functools.cache
def onednn_precision() -> str:
    """The precision under which a CPU's float32 products are fastest and still float32. "medium" hands them to oneDNN
    (MKL takes 1.7 times as long for GPT-2's output layer on an EPYC), but lets it use bfloat16 inside, and a processor
    with such instructions does: one product against float64 shows that, and then it is "highest"."""
    x, w = (torch.linspace(-3, 3, n * 512).sin().view(n, 512) for n in (256, 1024))
    with matmul_precision("medium"):
        error = ((x @ w.T) - x.double() @ w.double().T).abs().max()
    return "medium" if error < 1e-3 and not torch.cuda.is_available() else "highest"


def trim() -> None:
    """What Python and torch have freed goes back to the system, where the platform can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def peak_memory(seconds: float = 0.02) -> Iterator[Callable[..., float]]:
    """`with peak_memory() as peak:` peak() is the most memory held since the start in MB (10^6 bytes): on a GPU what
    torch has allocated, else what of this process is resident, looked at every `seconds` by a thread; peak(above=True)
    is what of it came on top of the start, before which comes `trim`."""
    gpu, process, over = profile.device().type == "cuda", psutil.Process(), threading.Event()
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trim()
    start = highest = torch.cuda.memory_allocated() if gpu else process.memory_info().rss

    def peak(above: bool = False) -> float:
        nonlocal highest
        highest = max(highest, torch.cuda.max_memory_allocated() if gpu else process.memory_info().rss)
        return (highest - start * above) / 1e6

    def watch() -> None:
        while not (gpu or over.wait(seconds)):
            peak()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
