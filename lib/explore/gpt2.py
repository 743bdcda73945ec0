"""GPT-2's forward pass written out on plain tensors; `params` is the model's own state dict.

Radford et al. 2019 (GPT-2: the norm before each sublayer, one more at the end); Vaswani et al. 2017, arXiv:1706.03762
(attention); Ba et al. 2016, arXiv:1607.06450 (layer norm); Hendrycks and Gimpel 2016, arXiv:1606.08415 (GELU)."""

import math

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

Params = dict[str, Tensor]
GPT2_117M = GPT2Config()  # transformers' defaults are the 117M model: 12 blocks, 12 heads, width 768
EPSILON = 1e-5  # under the root of the layer norm, the same in all sizes of GPT-2


def random_gpt2(config: GPT2Config = GPT2_117M) -> GPT2LMHeadModel:
    """A GPT-2 in which every number is random, to compare two implementations on: norms of 1, biases of 0 and uniform
    attention, from which training starts, would hide a mistake. The attention scores are about 2 apart."""
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = 1.5 / math.sqrt(config.n_embd) * noise if p.dim() > 1 else p.data + 0.2 * noise
    return model


def parameters_of(model: PreTrainedModel) -> Params:
    """A GPT-2's tensors under its own names, such as `h.0.attn.c_attn.weight`. ValueError for another architecture."""
    if model.config.model_type != "gpt2":
        raise ValueError(f"The forward pass written out is GPT-2's, not that of a {model.config.model_type} model.")
    return {name.removeprefix("transformer."): x for name, x in model.state_dict().items()}


def embed(params: Params, input_ids: Tensor) -> Tensor:
    """Token vector plus position vector, both read from learned tables: (B, T) -> (B, T, C)."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (T,)
    return params["wte.weight"][input_ids] + params["wpe.weight"][positions]  # (B, T, C) + (T, C)


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Each token's vector to mean 0 and variance 1, then a learned scale and shift: (B, T, C)."""
    mean = x.mean(-1, keepdim=True)  # (B, T, 1)
    variance = x.var(-1, keepdim=True, unbiased=False)  # (B, T, 1)
    x = (x - mean) / torch.sqrt(variance + EPSILON)
    return x * params[f"{name}.weight"] + params[f"{name}.bias"]


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """x W + b: (B, T, in) -> (B, T, out). GPT-2 stores W as (in, out), nn.Linear the other way."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params: Params, name: str, x: Tensor, n_head: int) -> tuple[Tensor, Tensor]:
    """Causal multi-head self-attention: (B, T, C) -> output (B, T, C) and weights (B, H, T, T).

    Row t of the weights is how token t divides its attention over tokens 0 .. t; it sums to 1."""
    B, T, C = x.shape
    D = C // n_head  # the width of one head
    q, k, v = linear(params, f"{name}.c_attn", x).split(C, dim=-1)  # 3 of (B, T, C)
    q, k, v = (y.view(B, T, n_head, D).transpose(1, 2) for y in (q, k, v))  # (B, H, T, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # above diagonal
    weights = scores.masked_fill(future, -math.inf).softmax(-1)  # (B, H, T, T)
    out = (weights @ v).transpose(1, 2).reshape(B, T, C)  # the heads side by side again
    return linear(params, f"{name}.c_proj", out), weights


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh form that GPT-2 was trained with (`gelu_new` in transformers)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(params: Params, name: str, x: Tensor) -> Tensor:
    """Each token on its own, to four times the width and back: (B, T, C) -> (B, T, C)."""
    hidden = gelu(linear(params, f"{name}.c_fc", x))  # (B, T, 4C)
    return linear(params, f"{name}.c_proj", hidden)


def block(params: Params, name: str, x: Tensor, n_head: int) -> tuple[Tensor, Tensor]:
    """x plus attention, then plus MLP, each on normalised input: (B, T, C), (B, H, T, T)."""
    out, weights = attention(params, f"{name}.attn", layer_norm(params, f"{name}.ln_1", x), n_head)
    x = x + out
    return x + mlp(params, f"{name}.mlp", layer_norm(params, f"{name}.ln_2", x)), weights


def blocks(params: Params, input_ids: Tensor, n_head: int) -> tuple[Tensor, list[Tensor]]:
    """Embeddings and every block: (B, T) -> (B, T, C), and the (B, H, T, T) weights of each. Raises ValueError for a
    sequence longer than the position table."""
    if input_ids.shape[1] > (longest := len(params["wpe.weight"])):
        raise ValueError(f"{input_ids.shape[1]} tokens, and the position table ends at {longest}: shorten the input.")
    x, maps = embed(params, input_ids), []
    for i in range(len({name.split(".")[1] for name in params if name.startswith("h.")})):
        x, weights = block(params, f"h.{i}", x, n_head)
        maps.append(weights)
    return x, maps


def forward(params: Params, input_ids: Tensor, n_head: int) -> Tensor:
    """Token ids to logits: (B, T) -> (B, T, V). The logits at t score the token that follows t."""
    x, _ = blocks(params, input_ids, n_head)  # (B, T, C)
    return layer_norm(params, "ln_f", x) @ params["wte.weight"].T  # the token table once more
