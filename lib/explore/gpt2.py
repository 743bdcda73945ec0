"""GPT-2 written out: the forward pass from token ids to logits, and its parameters by component.

Plain functions on plain tensors, so that the whole model can be read in one sitting. `params` is
the model's own state dict (`parameters_of`); tests/test_gpt2.py holds them to transformers' output.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2: the norm
before each sublayer, one more at the end); Vaswani et al. 2017, arXiv:1706.03762 (attention); Ba et
al. 2016, arXiv:1607.06450 (layer norm); Hendrycks and Gimpel 2016, arXiv:1606.08415 (GELU).
"""

import math
import re

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PretrainedConfig, PreTrainedModel

Params = dict[str, Tensor]
GPT2_117M = GPT2Config()  # transformers' defaults are the 117M model: 12 blocks, 12 heads, width 768
EPSILON = 1e-5  # under the root of the layer norm, the same in all sizes of GPT-2


def random_gpt2(config: GPT2Config = GPT2_117M, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 in which every number is random, to compare two implementations on.

    Training starts from norms of 1, biases of 0 and almost uniform attention, which would hide a
    mistake; this spread makes the attention scores about 2 apart.
    """
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        spread = 1.5 / math.sqrt(config.n_embd) if p.dim() > 1 else 0.2
        noise = spread * torch.randn(p.shape, generator=generator)
        p.data = noise if p.dim() > 1 else p.data + noise
    return model


def parameters_of(model: PreTrainedModel) -> Params:
    """A GPT2LMHeadModel's tensors under GPT-2's own names: `wte.weight`, `h.0.attn.c_attn.weight`.

    Raises ValueError for another architecture.
    """
    if model.config.model_type != "gpt2":
        raise ValueError(
            f"The forward pass written out here is GPT-2's, not that of a {model.config.model_type}"
            " model: pass a GPT2LMHeadModel, for example lib.explore.gpt2.random_gpt2()."
        )
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

    Row t of the weights is how token t divides its attention over tokens 0 .. t; it sums to 1.
    """
    B, T, C = x.shape
    D = C // n_head  # the width of one head
    q, k, v = linear(params, f"{name}.c_attn", x).split(C, dim=-1)  # 3 of (B, T, C)
    q, k, v = (y.view(B, T, n_head, D).transpose(1, 2) for y in (q, k, v))  # (B, H, T, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # above the diagonal
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
    """Embeddings and every block: (B, T) -> (B, T, C), and the (B, H, T, T) weights of each.

    Raises ValueError for a sequence longer than the position table.
    """
    if input_ids.shape[1] > (longest := len(params["wpe.weight"])):
        raise ValueError(
            f"{input_ids.shape[1]} tokens, and the position table ends at {longest}: "
            f"shorten the input to {longest} tokens."
        )
    x, maps = embed(params, input_ids), []
    for i in range(len({name.split(".")[1] for name in params if name.startswith("h.")})):
        x, weights = block(params, f"h.{i}", x, n_head)
        maps.append(weights)
    return x, maps


def forward(params: Params, input_ids: Tensor, n_head: int) -> Tensor:
    """Token ids to logits: (B, T) -> (B, T, V). The logits at t score the token that follows t."""
    x, _ = blocks(params, input_ids, n_head)  # (B, T, C)
    return layer_norm(params, "ln_f", x) @ params["wte.weight"].T  # the token table once more


# GPT-2's and Llama's parameter names, in the order of the table; the first match names a component.
COMPONENTS = {
    "token embedding": r"\b(wte|embed_tokens)\.",
    "position embedding": r"\bwpe\.",
    "attention: query, key, value": r"\b(c_attn|q_proj|k_proj|v_proj)\.",
    "attention: output": r"\b(attn\.c_proj|o_proj)\.",
    "MLP": r"\bmlp\.",
    "norms in the blocks": r"\b(ln_1|ln_2|input_layernorm|post_attention_layernorm)\.",
    "final norm": r"\b(ln_f|model\.norm)\.",
    "LM head": r"\blm_head\.",
}


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration without memory for its weights: shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def parameter_table(model: PreTrainedModel | PretrainedConfig) -> pd.DataFrame:
    """Trained numbers by component: component, formula, parameters, share; the last row is `total`.

    The formula is made of the tensors' shapes and evaluates to the count. A head tied to the token
    embedding has no numbers of its own and counts 0. Raises ValueError for a parameter that fits no
    component.
    """
    model = meta_model(model) if isinstance(model, PretrainedConfig) else model
    tensors: dict[str, list] = {component: [] for component in COMPONENTS}
    for name, tensor in model.named_parameters():  # a tied tensor comes once
        fits = (c for c, pattern in COMPONENTS.items() if re.search(pattern, name))
        if (component := next(fits, None)) is None:
            raise ValueError(f"Parameter {name} fits no component: name it in lib.explore.gpt2.COMPONENTS.")
        tensors[component].append((name, tuple(tensor.shape)))
    total = sum(p.numel() for p in model.parameters())
    rows = [_row(c, t, total) for c, t in tensors.items() if t or c == "LM head"]
    rows.append({"component": "total", "formula": "", "parameters": total, "share": 1.0})
    return pd.DataFrame(rows)


def _row(component: str, tensors: list[tuple[str, tuple[int, ...]]], total: int) -> dict:
    by_block: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in tensors:
        number = re.search(r"\.(\d+)\.", name)
        by_block.setdefault(number.group(1) if number else "", []).append(shape)
    formula = " + ".join("·".join(map(str, s)) for s in next(iter(by_block.values()), []))
    if len(by_block) > 1:  # every block has the same shapes
        formula = f"{len(by_block)}·({formula})"
    count = sum(math.prod(shape) for _, shape in tensors)
    return {
        "component": component,
        "formula": formula or "tied: the token embedding again",
        "parameters": count,
        "share": count / total,
    }


def features(config: PretrainedConfig) -> dict[str, str]:
    """What sets one decoder apart from another, from its configuration and parameter names."""
    model = meta_model(config)
    names = [name for name, _ in model.named_parameters()]
    C, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * C
    rope = getattr(config, "rope_parameters", None) or {}
    position = f"rotary (RoPE), base {rope['rope_theta']:,.0f}" if rope else "not known here"
    if any("wpe" in name for name in names):
        position = "learned table (wpe)"
    gated = any("gate_proj" in name for name in names)
    biases = any(re.search(r"(c_attn|_proj|c_fc)\.bias$", name) for name in names)
    return {
        "vocabulary": f"{config.vocab_size:,} tokens",
        "longest context": f"{config.max_position_embeddings:,} tokens",
        "blocks": f"{config.num_hidden_layers}",
        "width C": f"{C}",
        "attention heads": f"{heads} of width {getattr(config, 'head_dim', None) or C // heads}",
        "key-value heads": f"{getattr(config, 'num_key_value_heads', None) or heads}",
        "MLP": f"{C} → {inner} → {C}{', gated' if gated else ''}",
        "activation": getattr(config, "activation_function", None) or config.hidden_act,
        "norm": "RMSNorm" if hasattr(config, "rms_norm_eps") else "LayerNorm",
        "position": position,
        "biases in linear layers": "yes" if biases else "no",
        "LM head": "tied to the token embedding" if config.tie_word_embeddings else "its own",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
    }


def differences(base) -> pd.DataFrame:
    """GPT-2 117M beside the loaded model: feature, one column each, differs (bool).

    `base` is a lib.models.Base; both columns come from the configurations.
    """
    ours, theirs = features(GPT2_117M), features(base.model.config)
    columns = {"GPT-2 117M": ours.values(), f"loaded: {base.name}": theirs.values()}
    table = pd.DataFrame({"feature": ours.keys(), **columns})
    return table.assign(differs=[ours[f] != theirs[f] for f in ours])
