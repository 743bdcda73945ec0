# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 Load and generate
#
# What GPT-2 117M is made of, number by number; its forward pass written out and held against the
# library's; how a text becomes tokens, and how the next token is chosen; what can be seen inside.
#
# If GPT-2 is not within reach, a stand-in of the same size is loaded and says so. The structure below is
# then still GPT-2's, from its configuration, and section 2.6 names what differs.
#
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.
# - JupyterLab saves what you ran: stepping through with `PROFILE=fast` replaces the outputs that are kept in git;
#   `git checkout notebooks/*.ipynb` brings them back.

# %%
REPOSITORY = ""  # on Colab: the address of your team's copy, such as https://github.com/you/coursework
import glob, os, subprocess, sys

if "google.colab" in sys.modules:
    if REPOSITORY and not glob.glob("/content/*/lib/colab.py"):
        subprocess.run(["git", "clone", "-q", REPOSITORY, "/content/project"])
    if not (found := glob.glob("/content/*/lib/colab.py")):
        sys.exit("Set REPOSITORY, or upload the project's zip and run `!unzip -q NAME.zip`; then run this cell again.")
    os.chdir(f"{os.path.dirname(found[0])}/../notebooks")
    subprocess.run([sys.executable, "-m", "lib", "colab"], cwd="..", check=True)
    sys.path.insert(0, "..")

# %%
import functools, inspect, math, re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import transformers
from matplotlib.patches import FancyBboxPatch

from lib import generate, metrics, models, plots, profile, tasks
from lib.explore import gpt2, gpt2_bpe
from lib.results import Results

pd.set_option("display.max_colwidth", 160, "display.max_rows", 80)

# %% [markdown]
# ## 1 Load the model
#
# - One line says which model came, from where, and whether it is the stand-in. The order of places is in
#   `lib/models.py`: `BASE_MODEL`, a local folder, the Hugging Face cache, the hub or a mirror, the stand-in.
# - Everything below that depends on the loaded model carries its name; a stand-in's number is never GPT-2's.
# - How much is generated, as (fast, cpu, full). Nothing is trained here.

# %%
budget = profile.budget(sample_tokens=(24, 120, 160), continuation_tokens=(24, 30, 30))
base = models.load_base()
model, tokenizer = base.model, base.tokenizer
results = Results("01_load_and_generate", base=base, seeds=[0, 1, 2])
if results.stored and base.name != (stored := results.provenance()["base_model"]):
    raise RuntimeError(f"The stored numbers are of {stored}, and {base.name} was loaded: run without RESULTS=stored.")

of_what = base.name + ", not GPT-2 117M" * base.stand_in + ", untrained" * (base.name == models.TINY)
print(f"Profile {profile.name()}. Measured below: {of_what}.")

# %% [markdown]
# ## 2 The structure of GPT-2
#
# GPT-2 (Radford et al. 2019) is a decoder-only transformer. It reads $T$ tokens $x_0 \dots x_{T-1}$ and
# gives, at every place $t$, a probability for each of the $V$ tokens that could follow $x_0 \dots x_t$. It
# was trained to maximise $\sum_t \log p(x_{t+1} \mid x_0 \dots x_t)$, nothing else.
#
# ### 2.1 The parts
#
# - A parameter belongs to the first component whose pattern is found in its name; a name that fits none is an error.

# %%
COMPONENTS = {  # of GPT-2, and of Llama-like models such as the stand-in
    "token embedding": r"\b(wte|embed_tokens)\.",
    "position embedding": r"\bwpe\.",
    "attention: query, key, value": r"\b(c_attn|q_proj|k_proj|v_proj)\.",
    "attention: output": r"\b(attn\.c_proj|o_proj)\.",
    "MLP": r"\bmlp\.",
    "norms in the blocks": r"\b(ln_1|ln_2|input_layernorm|post_attention_layernorm)\.",
    "final norm": r"\b(ln_f|model\.norm)\.",
    "LM head": r"\blm_head\.",
}


def empty_model(config) -> transformers.PreTrainedModel:
    """Shapes only: no memory for the weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


# %% [markdown]
# - The formula is made of the tensors' shapes, those of a block once. A head that is tied to the token embedding has no
#   numbers of its own.


# %%
def parameter_table(model) -> pd.DataFrame:
    shapes = {component: {} for component in COMPONENTS}  # component -> block -> shapes
    for name, tensor in model.named_parameters():  # a tied tensor comes once
        component = next((c for c, pattern in COMPONENTS.items() if re.search(pattern, name)), None)
        if component is None:
            raise ValueError(f"Parameter {name} fits no component: name it in COMPONENTS.")
        place = re.search(r"\.\d+\.", name)
        shapes[component].setdefault(place and place[0], []).append(tuple(tensor.shape))
    total, rows = sum(p.numel() for p in model.parameters()), []
    for component, by_block in shapes.items():
        if by_block or component == "LM head":
            formula = " + ".join("·".join(map(str, s)) for s in next(iter(by_block.values()), []))
            if len(by_block) > 1:  # every block has the same shapes
                formula = f"{len(by_block)}·({formula})"
            count = sum(math.prod(shape) for block in by_block.values() for shape in block)
            rows.append((component, formula or "tied: the token embedding again", count, count / total))
    return pd.DataFrame([*rows, ("total", "", total, 1.0)], columns=["component", "formula", "parameters", "share"])


# %% [markdown]
# ### 2.2 The picture
#
# - What stands in the boxes of the picture: every size is computed from the configuration, GPT-2's or the loaded
#   model's. `boxes` gives the height, the text and the colour of each.


# %%
GPT2 = "GPT-2 117M"
gpt2_parameters = parameter_table(empty_model(gpt2.GPT2_117M))
parts = gpt2_parameters.set_index("component").parameters
BLUE, ORANGE, GREEN, GREY = "#cfe2f3", "#fce5cd", "#d9ead3", "#e8e8e8"


def boxes(c) -> list[tuple[float, str, str]]:
    llama, C, V = c.model_type != "gpt2", c.hidden_size, c.vocab_size
    heads, shared = c.num_attention_heads, getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    inner = getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * C
    norm = "RMSNorm" if llama else "LayerNorm"
    table = f"token table, {V:,} × {C}\n" + ("no position table" if llama else f"+ position table, 1,024 × {C}")
    attention = f"causal self-attention{', RoPE on Q and K' if llama else ''}\n{heads} heads of width {C // heads}"
    attention += f"\nkeys and values: {shared} heads"
    mlp = f"MLP, gated by SiLU\n{C} → 2 · {inner:,} → {C}" if llama else f"MLP with GELU\n{C} → {inner:,} → {C}"
    norms = [(y, norm, GREY) for y in (2.9, 5.7, 8.3)]
    ends = [(0.0, "token ids (B, T)", "white"), (10.5, f"logits (B, T, {V:,})", "white")]
    head = (9.4, "head: the token table, transposed", BLUE)
    return [*ends, *norms, (1.2, table, BLUE), (4.0, attention, ORANGE), (6.6, mlp, GREEN), head]


# %% [markdown]
# - Follow an arrow from the token ids up: one vector per token, the residual stream, which equal blocks refine.
# - Each sublayer *adds* to that vector (the lines around it).
# - Left GPT-2 117M; beside it the loaded model, where it is another.


# %%
def stack(ax, name: str, config) -> None:
    shown = boxes(config)
    ax.add_patch(FancyBboxPatch((-3.3, 2.3), 7.3, 5.45, boxstyle="round,pad=0.05", fc="0.97", ec="0.6", ls="--"))
    ax.annotate("", (0, 10.2), (0, 0.3), arrowprops={"arrowstyle": "->", "lw": 1.2}, zorder=1)
    for leave, join in ((2.45, 5.05), (5.3, 7.4)):  # around attention and around the MLP
        ax.plot([0, 3.65, 3.65, 0.15], [leave, leave, join, join], color="0.3", ls="-", lw=1.2, zorder=1)
        shown.append((join, "+", "white"))
    for y, text, colour in shown:
        box = {"boxstyle": "circle,pad=0.1" if text == "+" else "round,pad=0.35", "fc": colour, "ec": "0.3"}
        ax.text(0, y, text, ha="center", va="center", fontsize=8, zorder=4, bbox=box)
    ax.text(-3.2, 7.6, f"× {config.num_hidden_layers} blocks", va="top", fontsize=8, zorder=5)
    ax.text(0.15, 2.02, f"h (B, T, {config.hidden_size})", fontsize=7.5, va="center")
    ax.set(xlim=(-3.7, 4.3), ylim=(-0.6, 11), title=name)
    ax.axis("off")


stacks = {GPT2: gpt2.GPT2_117M} | ({base.name: model.config} if model.config.model_type != "gpt2" else {})
figure, axes = plt.subplots(1, len(stacks), figsize=(6.3, 5.2), squeeze=False)
for ax, (name, config) in zip(axes[0], stacks.items(), strict=True):
    stack(ax, name, config)
text = "From token ids to logits, with the sizes of the configuration" + ("s" if len(stacks) > 1 else "")
results.figure(figure, "01_structure", f"{text}: {' and '.join(stacks)}.", scratch=True, seeds=())

# %% [markdown]
# ### 2.3 Where the parameters are
#
# - The formula column is made of the tensors' shapes; the rows sum to the total, 124,439,808.
# - "117M" is the paper's count. The head has no numbers of its own: it is the token table, transposed.

# %%
tables = {GPT2: gpt2_parameters, base.name: parameter_table(model)}
counted = results.table("parameters", lambda: pd.concat([t.assign(model=name) for name, t in tables.items()]))
assert counted[counted.model == base.name].parameters.iloc[-1] == base.parameters
assert parts.drop("total").sum() == parts["total"] == models.GPT2_PARAMETERS
forms = {"parameters": "{:,}".format, "share": "{:.2%}".format}
as_text = gpt2_parameters.assign(**{c: gpt2_parameters[c].map(form) for c, form in forms.items()})
as_text

# %% [markdown]
# ### 2.4 The forward pass, written out
#
# The code shown is what runs: `lib/explore/gpt2.py`, plain functions on the model's own tensors. $B$ texts in the
# batch, $T$ tokens, width $C = 768$, $H = 12$ heads of width $D = C / H = 64$.
#
# - **Embedding.** The vector of token $x_t$ plus the vector of place $t$, both learned:
#   $h_t = W_e[x_t] + W_p[t]$. Place 1,024 has no vector: the context ends there.


# %%
plots.source(gpt2.embed)

# %% [markdown]
# - **Layer norm** in front of every sublayer, over the $C$ numbers of one token:
#   $\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot g + b$, with $g$ and $b$ learned.
# - **Linear**: GPT-2 stores its matrices as (in, out), the transpose of torch's `nn.Linear`.

# %%
plots.source(gpt2.layer_norm, gpt2.linear)

# %% [markdown]
# - **Causal self-attention.** Each token asks with a query, and is found by a key, in each head:
#   $A = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{D}} + M\right)$, $\mathrm{head} = A V$, where
#   $M = -\infty$ above the diagonal, so that no token sees a later one, and $0$ elsewhere.
# - $\sqrt{D}$ keeps the spread of the scores independent of the head's width: softmax does not saturate.

# %%
plots.source(gpt2.attention)

# %% [markdown]
# - **MLP**, each token on its own: $W_2\,\mathrm{GELU}(W_1 x + b_1) + b_2$, four times as wide inside, with
#   $\mathrm{GELU}(x) \approx \frac{x}{2}\left(1 + \tanh(\sqrt{2 / \pi}\,(x + 0.044715\,x^3))\right)$.

# %%
plots.source(gpt2.gelu, gpt2.mlp)

# %% [markdown]
# - **Block**: $h \leftarrow h + \mathrm{Attention}(\mathrm{LN}_1(h))$, then
#   $h \leftarrow h + \mathrm{MLP}(\mathrm{LN}_2(h))$.
# - **Head**: the logits $z_t = W_e\,\mathrm{LN}_f(h_t)$, one per token of the vocabulary; $W_e$ serves both ends.

# %%
plots.source(gpt2.block, gpt2.blocks, gpt2.forward)

# %% [markdown]
# ### 2.5 Is it right?
#
# - The same weights and ids through transformers' own GPT-2: the largest difference of a logit must stay
#   below $10^{-4}$. With the stand-in loaded the weights are random, every norm and bias too, so that none
#   of them can hide a mistake; the size is that of GPT-2 117M (under `fast`, the tiny model's own).
# - **No look into the future**: with every token from place 12 on replaced, the logits of the places before
#   stay as they were. A model that fails this test has a perplexity that means nothing.


# %%
@torch.no_grad()
def verify() -> list[dict]:
    reference = model if model.config.model_type == "gpt2" else gpt2.random_gpt2().to(model.device)
    params, n_head, V = gpt2.parameters_of(reference), reference.config.n_head, reference.config.vocab_size
    ids = torch.randint(V, (2, 24), generator=torch.Generator().manual_seed(0)).to(model.device)  # (B, T)
    ours, theirs = gpt2.forward(params, ids, n_head), reference(ids).logits  # (B, T, V)
    difference, size = (ours - theirs).abs().max().item(), sum(p.numel() for p in reference.parameters())
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % V
    moved = (gpt2.forward(params, changed, n_head) - ours).abs().amax((0, 2))  # (T,)
    leak, after = moved[:12].max().item(), moved[12:].max().item()
    assert difference < 1e-4 and leak < 1e-5 < after
    return [{"parameters": size, "largest_difference": difference, "future_leak": leak}]


forward = results.table("forward", verify).iloc[0]
forward

# %% [markdown]
# ### 2.6 What differs in the loaded model
#
# - What a configuration says of a model, in words. Where a feature has no entry of its own, the parameters' names
#   tell it: `gate_proj` is a gated MLP, `wpe` a learned position table.


# %%
def features(config) -> dict[str, str]:
    names = " ".join(name for name, _ in empty_model(config).named_parameters())
    C, heads, rope = config.hidden_size, config.num_attention_heads, getattr(config, "rope_parameters", None)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * C
    rotary = f"rotary (RoPE), base {rope['rope_theta']:,.0f}" if rope else "not known here"
    return {
        "vocabulary": f"{config.vocab_size:,} tokens",
        "longest context": f"{config.max_position_embeddings:,} tokens",
        "blocks": f"{config.num_hidden_layers}",
        "width C": f"{C}",
        "attention heads": f"{heads} of width {getattr(config, 'head_dim', None) or C // heads}",
        "key-value heads": f"{getattr(config, 'num_key_value_heads', None) or heads}",
        "MLP": f"{C} → {inner} → {C}{', gated' if 'gate_proj' in names else ''}",
        "activation": getattr(config, "activation_function", None) or config.hidden_act,
        "norm": "RMSNorm" if hasattr(config, "rms_norm_eps") else "LayerNorm",
        "position": "learned table (wpe)" if "wpe" in names else rotary,
        "biases in linear layers": "yes" if re.search(r"(c_attn|_proj|c_fc)\.bias\b", names) else "no",
        "LM head": "tied to the token embedding" if config.tie_word_embeddings else "its own",
        "parameters": f"{empty_model(config).num_parameters():,}",
    }


# %% [markdown]
# - The left column is GPT-2 117M's configuration, the right one that of the model loaded in section 1.
#   Rows with `differs = True` are where the explanation above does not describe the loaded model.

# %%
both = pd.DataFrame({"gpt2_117m": features(gpt2.GPT2_117M), "loaded": features(model.config)})
both["differs"] = both.gpt2_117m != both.loaded
differences = results.table("differences", lambda: both.reset_index(names="feature"))
print(f"{differences.differs.sum()} of {len(differences)} features differ.")
differences

# %% [markdown]
# ## 3 How a text becomes tokens
#
# Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) starts from the 256 bytes, so no text is
# unknown to it, and merges the pairs most frequent in its training text. For GPT-2 that text was English;
# a Chinese character is three bytes of UTF-8, and rare ones stay in pieces.
#
# - The same sentence twice, then a Tang couplet (Li Bai). Boxes are tokens, ␣ is a space, and
#   <E6 98> are the bytes of a token that is only a part of a character.

# %%
TEXTS = {
    "English": "Natural language processing is a branch of artificial intelligence.",
    "Chinese": "自然语言处理是人工智能的一个分支。",
    "Tang poem": "床前明月光，疑是地上霜。",
}
ids = tokenizer([*TEXTS.values()], add_special_tokens=False).input_ids
cut = {name: [generate.token_text(tokenizer, i) for i in row] for name, row in zip(TEXTS, ids, strict=True)}
figure = plots.strips({"tokens, and how many": cut})

# %% [markdown]
# - Fewer bytes per token: a longer sequence for the same text, and less of it in the context.
# - `broken` counts the tokens that are no valid UTF-8 alone: the model must emit them in the right order.


# %%
def count_tokens() -> pd.DataFrame:
    rows = []
    for name, sentence in TEXTS.items():
        token_ids = tokenizer(sentence, add_special_tokens=False).input_ids
        assert tokenizer.decode(token_ids) == sentence  # nothing is lost
        broken = sum("\ufffd" in tokenizer.decode([i]) for i in token_ids)
        rows.append((name, len(sentence), len(sentence.encode()), len(token_ids), broken))
    t = pd.DataFrame(rows, columns=["text", "characters", "bytes", "tokens", "broken"])
    return t.assign(bytes_per_token=t.bytes / t.tokens, characters_per_token=t.characters / t.tokens)


tokens = results.table("tokens", count_tokens)
tokens.round(2)

# %% [markdown]
# ## 4 How the next token is chosen
#
# The model gives logits $z$ for the next token; decoding turns them into a choice.
#
# | setting | rule |
# |--|--|
# | greedy | the most probable token |
# | temperature $\tau$ | draw from $p_i \propto e^{z_i / \tau}$: $\tau < 1$ sharpens, $\tau > 1$ flattens |
# | top-k | keep the $k$ most probable, renormalise, draw (Fan et al. 2018) |
# | top-p | keep the fewest, most probable first, that sum to $p$, renormalise, draw (Holtzman et al. 2020) |
# | beam search | keep the $b$ continuations with the highest $\sum_t \log p$; nothing is drawn |
#
# - One prompt, six settings, and the logits that all of them start from.

# %%
PROMPT = "The weather was cold, so she put on her"
prompt_ids = tokenizer(PROMPT, add_special_tokens=False).input_ids
warm, top_k = transformers.TemperatureLogitsWarper, transformers.TopKLogitsWarper
SETTINGS = {"greedy": top_k(1)} | {f"temperature {x}": warm(x) for x in (0.7, 1.0, 1.3)}
SETTINGS |= {"top-k 5": top_k(5), "top-p 0.9": transformers.TopPLogitsWarper(0.9)}


@torch.no_grad()
def last_logits(ids: torch.Tensor) -> torch.Tensor:  # (N, T) -> (N, V), as generate computes
    with profile.autocast(), metrics.float32_logits(model):
        return model(ids.to(model.device)).logits[:, -1].float().cpu()


# %% [markdown]
# - What each setting makes of the same distribution. The settings shift probability; the order of the tokens
#   stays.


# %%
def next_token(top: int = 8) -> pd.DataFrame:
    ids, rows = torch.tensor([prompt_ids]), []
    logits = last_logits(ids)
    shown = logits[0].topk(top).indices
    for name, warper in SETTINGS.items():
        p = warper(ids, logits.clone()).softmax(-1)[0]  # (V,)
        rows += [(name, generate.token_text(tokenizer, i), p[i].item()) for i in shown.tolist()]
        rows.append((name, generate.OTHERS, max(0.0, 1 - p[shown].sum().item())))
    return pd.DataFrame(rows, columns=["setting", "token", "probability"]).assign(prompt=PROMPT)


odds = results.table("next_token", next_token)
text = f"The next token after “{PROMPT}” under six settings."
results.figure(plots.bars(odds), "01_next_token", text, seeds=())
by_setting = odds.pivot_table("probability", "token", "setting", sort=False)
by_setting.round(4)

# %% [markdown]
# - One generation from prompt to end: at each step the three likeliest tokens, of which the first is taken (greedy).
#   A model that follows instructions is asked through its chat template, another with the question alone.

# %%
QUESTION = "What is the capital of France?"


def trace() -> list[dict]:
    chat = [{"role": "user", "content": QUESTION}]
    options = {"add_generation_prompt": True, "tokenize": False}
    asked = tokenizer.apply_chat_template(chat, **options) if tokenizer.chat_template else QUESTION
    ids, rows = tokenizer(asked, add_special_tokens=False).input_ids, []
    while len(rows) < 12 and (not rows or rows[-1]["token_1"] != tokenizer.eos_token):
        top = last_logits(torch.tensor([ids]))[0].softmax(-1).topk(3)
        row = {"step": len(rows) + 1, "read": len(ids)}
        for i, (p, token) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1):
            row |= {f"token_{i}": tokenizer.decode([token]), f"probability_{i}": p}
        rows.append(row)
        ids.append(top.indices[0].item())
    return rows


traced = results.table("trace", trace)
print("prompt:", f"{traced.read.iloc[0]} tokens; answer:", "".join(traced.token_1))
traced.round(3)

# %% [markdown]
# - **Beam search** step by step, three beams. `logprob` is the sum so far, in nats; a beam that was behind
#   can overtake, which greedy decoding can't. The best `score`, the sum per token, wins.


# %%
def beam_search(num_beams: int = 3, steps: int = 4) -> pd.DataFrame:
    running, rows = [(0.0, [])], []  # log-probability, new tokens
    for step in range(1, steps + 1):
        log_p = last_logits(torch.tensor([prompt_ids + new for _, new in running])).log_softmax(-1)  # (beams, V)
        total = log_p + torch.tensor([[logprob] for logprob, _ in running])
        # twice as many candidates as beams: enough go on even where each beam could also end
        values, flat = total.flatten().topk(2 * num_beams)
        of, token = flat // total.shape[1], flat % total.shape[1]
        found = [(v, [*running[b][1], t]) for v, b, t in zip(*(x.tolist() for x in (values, of, token)), strict=True)]
        ended = [c for c in found[:num_beams] if c[1][-1] == tokenizer.eos_token_id]
        running = [c for c in found if c[1][-1] != tokenizer.eos_token_id][:num_beams]
        for beam, (value, new) in enumerate(sorted(ended + running, key=lambda c: -c[0])):
            text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            rows.append((step, beam, text, value, new[-1] == tokenizer.eos_token_id, value / step))
    return pd.DataFrame(rows, columns=["step", "beam", "text", "logprob", "finished", "score"])


beams = results.table("beams", beam_search)
if not results.stored:  # transformers' own beam search
    own, last = generate.generate(model, tokenizer, [PROMPT], 4, num_beams=3)[0], beams[beams.step == beams.step.max()]
    print(f"transformers: {own!r}, here: {last.text[last.score.idxmax()]!r}")
beams.round(3)

# %% [markdown]
# - The same prompt continued under each rule; sampling with three seeds, which may go three ways.


# %%
def continue_prompt() -> pd.DataFrame:
    runs = [(name, seed) for name in sorted(generate.DECODING) for seed in (results.seeds if name == "sample" else [0])]
    write = functools.partial(generate.generate, model, tokenizer, [PROMPT], budget.continuation_tokens)
    texts = [write(seed=seed, **generate.DECODING[name])[0] for name, seed in runs]
    return pd.DataFrame(runs, columns=["decoding", "seed"]).assign(text=texts)


continuations = results.table("continuations", continue_prompt)
print("; ".join(f"{name}: {choice}" for name, choice in generate.DECODING.items()))
continuations

# %% [markdown]
# ## 5 A batch with left padding equals one prompt at a time
#
# Prompts of unequal length need padding to share a batch. Generation appends on the right, so padding
# stands on the **left**, hidden by the attention mask, and positions are counted from the first real token.
#
# - Four ways to make one batch of three prompts. The first is the right one, the others are the usual mistakes.

# %%
PROMPTS = ["The", "My favourite food is", "In a small village by the sea there lived an old man who"]
rows = [tokenizer(p, add_special_tokens=False).input_ids for p in PROMPTS]


def ways() -> dict[str, tuple[torch.Tensor, ...]]:
    """Token ids, attention mask and positions, each (B, T)."""
    width, lengths = max(map(len, rows)), torch.tensor([len(r) for r in rows])[:, None]
    columns = torch.arange(width).expand(len(rows), width)  # (B, T)
    mask, pads = (columns >= width - lengths).long(), [[tokenizer.pad_token_id] * (width - len(r)) for r in rows]
    left, right = (torch.tensor([a + b for a, b in zip(*x, strict=True)]) for x in ((pads, rows), (rows, pads)))
    from_mask = (mask.cumsum(-1) - 1).clamp(min=0)  # 0 for the padding and for the first real token
    return {
        "left, mask, positions counted from the mask": (left, mask, from_mask),
        "left, mask, positions counted from the padding": (left, mask, columns),
        "left, no mask": (left, torch.ones_like(mask), columns),
        "right, mask, logits of the last column": (right, (columns < lengths).long(), columns),
    }


# %% [markdown]
# - The last logits of each prompt in the batch against those of the prompt alone: the first row must be rounding.
# - Below it the logits come from the wrong place, or padding is among what the model read. A learned position
#   table also minds a shifted count; RoPE, being relative, does not.


# %%
@torch.no_grad()
def against_alone() -> list[dict]:
    alone = torch.cat([model(torch.tensor([r], device=model.device)).logits[:, -1] for r in rows])  # (B, V)
    out = []
    for way, given in ways().items():
        given = zip(("input_ids", "attention_mask", "position_ids"), (x.to(model.device) for x in given), strict=True)
        logits = model(**dict(given)).logits[:, -1]  # (B, V)
        same, difference = (logits.argmax(-1) == alone.argmax(-1)).sum().item(), (logits - alone).abs().max().item()
        out.append({"way": way, "largest_difference": difference, "same_token": same, "prompts": len(rows)})
    return out


padding = results.table("padding", against_alone)
assert padding.largest_difference[0] < 1e-3
padding.assign(largest_difference=padding.largest_difference.map("{:.1e}".format))

# %% [markdown]
# - The texts, continued greedily in one batch, in float32 (in bfloat16 a near tie may fall either way); `same`
#   compares each with the prompt continued alone.


# %%
def continued(prompts: list[str]) -> list[str]:
    given = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
    out = model.generate(**given, max_new_tokens=20, do_sample=False)
    return tokenizer.batch_decode(out[:, given.input_ids.shape[1] :], skip_special_tokens=True)


def batch_or_alone() -> pd.DataFrame:
    together, alone = continued(PROMPTS), [continued([prompt])[0] for prompt in PROMPTS]
    table = pd.DataFrame({"prompt": PROMPTS, "tokens": list(map(len, rows))})
    return table.assign(padding=table.tokens.max() - table.tokens, text=together, same=lambda t: t.text == alone)


batch = results.table("batch", batch_or_alone)
print(f"{batch.same.sum()} of {len(batch)} texts are the same in the batch as alone.")
batch

# %% [markdown]
# ## 6 A look inside
#
# ### 6.1 Attention maps
#
# - The attention weights of every head on a sentence. Row: who looks; column: at whom.
# - Above the diagonal there is nothing: no token attends to a later one.

# %%
SENTENCE = "The cat sat on the mat because it was tired, and the dog watched it sleep."
OTHER = "Several years later the company moved its main office to Berlin and hired forty people."
KINDS = {"previous": "the token before", "itself": "itself", "first": "the first token", "spread": "evenly spread"}


def ids_of(sentence: str) -> torch.Tensor:
    return tokenizer(sentence, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)


@functools.cache
@torch.no_grad()
def maps(sentence: str) -> torch.Tensor:
    """The weights of every head, (L, H, T, T); only the eager implementation hands them out."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = torch.cat(model(ids_of(sentence), output_attentions=True).attentions).float().cpu()
    model.set_attn_implementation(usual)
    assert found.triu(1).max() == 0
    return found


# %% [markdown]
# - How much each head looks at the token before, at the token itself, at the first token, and how evenly it spreads
#   its attention.


# %%
def head_patterns(maps: torch.Tensor) -> pd.DataFrame:
    """Shares of each head's attention, kinds after Clark et al. 2019; in the first two rows `previous` is `first`."""
    entropy = -torch.special.xlogy(maps, maps).sum(-1)[..., 2:]  # (L, H, T - 2)
    columns = {
        "previous": maps.diagonal(-1, -2, -1)[..., 1:].mean(-1),  # (L, H)
        "itself": maps.diagonal(0, -2, -1)[..., 2:].mean(-1),
        "first": maps[..., 2:, 0].mean(-1),
        "spread": (entropy / torch.arange(3, maps.shape[-1] + 1).log()).mean(-1),  # 0: one token, 1: all alike
    }
    index = pd.MultiIndex.from_product([range(n) for n in maps.shape[:2]], names=["layer", "head"])
    return pd.DataFrame({k: v.flatten().tolist() for k, v in columns.items()}, index)


# %% [markdown]
# - Of each kind the most marked head. Picked as the highest of all heads on one sentence, a value flatters itself:
#   `elsewhere` is the same head on another sentence, `mean` all heads on the first. A pattern of the head, not of
#   the sentence, stays far from the mean.


# %%
def pick_heads() -> pd.DataFrame:
    here, other = head_patterns(maps(SENTENCE)), head_patterns(maps(OTHER))
    rows = [(kind, *here[kind].idxmax(), here[kind].max()) for kind in KINDS]
    table = pd.DataFrame(rows, columns=["pattern", "layer", "head", "value"])
    elsewhere = [other.loc[(h.layer, h.head), h.pattern] for h in table.itertuples()]
    return table.assign(elsewhere=elsewhere, mean=[here[kind].mean() for kind in KINDS])


heads = results.table("heads", pick_heads)
heads.round(3)

# %% [markdown]
# - The weights of these four heads, a row of the table per pair of tokens, and the tokens themselves.
# - The maps: a dark line beside the diagonal is the token before, a dark column the token that many look at.


# %%
def weights() -> pd.DataFrame:
    q, k = torch.tril_indices(*maps(SENTENCE).shape[-2:]).numpy()
    at = [(h.layer, h.head, {"query": q, "key": k}) for h in heads.itertuples()]
    frames = [pd.DataFrame({"layer": i, "head": j, **p}).assign(weight=maps(SENTENCE)[i, j, q, k]) for i, j, p in at]
    return pd.concat(frames)


attention = results.table("attention", weights)
names = [{"place": i, "token": generate.token_text(tokenizer, t)} for i, t in enumerate(ids_of(SENTENCE)[0].tolist())]
words = results.table("attention_tokens", lambda: names).token.map(plots.visible)

side = min(4.2, 1.0 + 0.14 * len(words))  # inches
figure, axes = plt.subplots(2, 2, sharex=True, sharey=True, figsize=(2 * side + 0.8, 2 * side))
for ax, head in zip(axes.flat, heads.itertuples(), strict=True):
    pairs = attention[(attention.layer == head.layer) & (attention["head"] == head.head)]
    image = ax.imshow(pairs.pivot_table("weight", "query", "key"), cmap="Blues", vmin=0, vmax=1)
    ax.set_title(f"{KINDS[head.pattern]}: block {head.layer}, head {head.head}", fontsize=9)
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    ax.set_yticks(range(len(words)), words, fontsize=7)
    ax.tick_params(length=0)
    ax.grid(False)
figure.supxlabel("attended token", fontsize=9)
figure.supylabel("attending token", fontsize=9)
_ = figure.colorbar(image, ax=axes, label="attention weight", shrink=0.6, aspect=30)

# %% [markdown]
# ### 6.2 Positions
#
# - Which positions look alike to the model. With a learned table (GPT-2): the cosine of its rows. With
#   RoPE (the stand-in): the relative score $\frac{2}{D}\sum_i \cos((m - n)\,\theta_i)$ of a query at $m$ and
#   a key at $n$, both of ones, a property of the formula and not of training.
# - A learned table with random weights shows noise; only a trained one has anything to say.
# - The matrix, kept in coarse steps: look at how the likeness falls off beside the diagonal.

# %%
length = min(1024, model.config.max_position_embeddings)
rotary = next((m for m in model.modules() if hasattr(m, "inv_freq")), None)
if rotary is None:
    table = dict(model.named_parameters())["transformer.wpe.weight"][:length].detach()
    table = torch.nn.functional.normalize(table.float().cpu(), dim=-1)  # (T, C)
    similarity, what = table @ table.T, "cosine similarity of the rows of wpe"  # (T, T)
else:  # float64: at position 1,000 float32 has only four digits of the angle's fraction left
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rotary.inv_freq.double().cpu()  # (T, D / 2)
    similarity = (angles.cos() @ angles.cos().T + angles.sin() @ angles.sin().T) / angles.shape[1]
    similarity, what = similarity.float(), "RoPE's relative score"

step = max(1, len(similarity) // 32)
coarse = similarity[::step, ::step].numpy()
m, n = np.tril_indices(len(coarse))
results.table("positions", lambda: pd.DataFrame({"m": m * step, "n": n * step, "similarity": coarse[m, n]}))
figure, ax = plt.subplots(figsize=(4.6, 3.8))
image = ax.imshow(similarity, cmap="cividis", vmin=-1, vmax=1)
ax.set(title="Positions", xlabel="position", ylabel="position")
ax.grid(False)
figure.colorbar(image, label=what, shrink=0.8, aspect=25).outline.set_visible(False)

# %% [markdown]
# - The same matrix by distance $m - n$: the line is the mean, the band reaches from the lowest to the highest
#   pair. No band: the value depends on the distance alone. Of the far distances every eighth is kept as a row.

# %%
m, n = np.tril_indices(len(similarity))
pairs = pd.DataFrame({"distance": m - n, "similarity": similarity[m, n].numpy()}).groupby("distance").similarity
distances = pairs.agg(mean="mean", lowest="min", highest="max").reset_index()
distances = distances[distances.distance < len(similarity) // 2]  # further out a diagonal is short
near = (distances.distance < 32) | (distances.distance % 8 == 0)
results.table("position_distance", lambda: distances[near])
figure, axes = plt.subplots()
axes.fill_between(distances.distance, distances.lowest, distances.highest, alpha=0.3)
axes.plot(distances.distance, distances["mean"])
axes.set(xlabel="distance of two positions", ylabel=what)
band = (distances.highest - distances.lowest).max()
print(f"Widest band {band:.1e}: {'a relative' if band < 1e-4 else 'not a purely relative'} position code.")

# %% [markdown]
# ## 7 Before fine-tuning
#
# - Three held-out prompts of the task that notebook 02 fine-tunes on, and what people wrote after them. Look at whether
#   the text has the form of theirs, says what the prompt asks for, and ends.

# %%
task = tasks.load_task(base=base)


def before() -> pd.DataFrame:
    rows = pd.DataFrame(tasks.head(task["validation"], 3))[["id", "prompt", "target"]]
    texts = generate.generate(model, tokenizer, [*rows.prompt], budget.sample_tokens, **generate.DECODING["sample"])
    return rows.assign(text=texts, task=task.name, stage="before")[["id", "prompt", "text", "target", "task", "stage"]]


samples = results.table("samples", before)
for row in samples.itertuples():
    print(f"{row.prompt}\n[people] {row.target}\n\n[{base.name}] {row.text}\n\n{'-' * 80}\n")

# %% [markdown]
# ## What we saw

# %%
share = parts.drop("total") / parts["total"]
by_text, by_way = tokens.set_index("text").bytes_per_token, padding.set_index("way").largest_difference
previous = next(heads[heads.pattern == "previous"].itertuples())
alone, no_mask, last = by_way.iloc[0], by_way["left, no mask"], by_way["right, mask, logits of the last column"]
next_tokens = by_setting["temperature 1.0"].drop(generate.OTHERS)
print(f"GPT-2 117M: {share['MLP']:.0%} of the parameters are MLPs, {share['token embedding']:.0%} the token table.")
print(f"The loaded model, {of_what}: bytes per token {by_text.round(1).to_dict()};")
print(f"after “{PROMPT}” {next_tokens.idxmax()!r} has {next_tokens.max():.1%};")
print(f"in a left-padded batch the logits move by {alone:.0e} at most, without the mask by {no_mask:.1f};")
print(f"block {previous.layer}, head {previous.head} gives {previous.value:.0%} of its attention to the token before.")

# %% [markdown]
# ## What it does not show
#
# - The written-out pass is for reading: no cache, no dropout, no padding, no mixed precision. Training and
#   generation use transformers' own.
# - A head that looks at the token before is not thereby *for* that: attention weights show where a head
#   reads, not what it does with it (Jain and Wallace 2019).
# - One prompt, one sentence and three samples show how it works, not how well: notebook 03 measures.
# - With the stand-in, sections 3 to 7 are about the stand-in. Under `fast` the weights are random, and
#   nothing in those sections is about language.

# %% [markdown]
# ## For the report
#
# - Numbers for `report.md`, each under the name that its mark has there.

# %%
results.value("model", f"the stand-in {base.name.removesuffix(' (stand-in)')}" if base.stand_in else GPT2)
results.value("gpt2.size", f"{parts['total']:,}")
results.claim("stand-in", base.stand_in)
results.claim("stand-in is SmolLM2-135M-Instruct", base.name.startswith(models.STAND_IN))

results.value("verified.parameters", f"{forward.parameters:,.0f}")
results.value("verified.difference", f"{forward.largest_difference:.0e}")
results.value("verified.leak", f"{forward.future_leak:.0e}" if forward.future_leak else "0")
results.claim("verified on random weights", model.config.model_type != "gpt2")
head, _, body = inspect.getsource(gpt2.attention).split('"""')
results.block("attention", f"```python\n{head.rstrip()}\n{body.strip(chr(10))}\n```")
results.value("padding.left", f"{alone:.0e}")
results.value("padding.no_mask", f"{no_mask:.1f}")
results.value("padding.right", f"{last:.1f}")
results.claim("only masked left padding leaves the logits", alone < 1e-3 < min(no_mask, last))

# %% [markdown]
# - What each rule makes of the prompt.

# %%
beam, sample = generate.DECODING["beam"], generate.DECODING["sample"]
cells = []
for r in continuations.sort_values("decoding", key=lambda names: names != "greedy").itertuples():
    drawn = f", seed {r.seed}" if r.decoding == "sample" else ""
    goes_on = " [...]" if len(tokenizer(r.text).input_ids) >= budget.continuation_tokens else ""
    cells.append([f"{r.decoding}{drawn}", " / ".join(filter(None, map(str.strip, r.text.split("\n")))) + goes_on])
text = f"“{PROMPT}” continued by at most {budget.continuation_tokens} tokens: greedy, {beam['num_beams']} beams, and "
text += f"sampled at temperature {sample['temperature']} with top-p {sample['top_p']}. / is a line's end."
results.markdown("continuations", ["rule", "what the model goes on with"], cells, text, left=2, seeds=())
results.value("trace.question", QUESTION)
results.claim("the traced answer ends", traced.token_1.iloc[-1] == tokenizer.eos_token)
cells = [
    [r["step"], r["read"], *(f"`{r[f'token_{i}']}` {r[f'probability_{i}']:.2f}" for i in (1, 2, 3))]
    for r in traced.replace(" ", "␣", regex=True).to_dict("records")
]
text = "One answer, step by step: tokens read so far, and the three likeliest next tokens with their probabilities; "
text += "the likeliest is taken; ␣ is a space. The first step's tokens are the question and what "
text += "the chat template puts around it."
header = ["step", "tokens read", "taken", "second", "third"]
results.markdown("trace", header, cells, text, seeds=())

# %% [markdown]
# - Its tables, and the file with everything: `data/results/01_load_and_generate.json`.

# %%
text = "Parameters of GPT-2 117M, by component, from its configuration."
results.markdown("parameters", list(as_text), as_text.to_numpy(), text, left=2, scratch=True, seeds=())

cells = [[r.feature, r.gpt2_117m, r.loaded] for r in differences.itertuples()]
header = ["feature", GPT2, "loaded model"]
results.markdown("differences", header, cells, "GPT-2 117M and the loaded model.", left=3, seeds=())

of_gpt2 = {name: len(gpt2_bpe.tokenizer()(sentence).input_ids) for name, sentence in TEXTS.items()}
cells = [[r.text, r.characters, r.bytes, of_gpt2[r.text], r.tokens, r.broken] for r in tokens.itertuples()]
header = ["text", "characters", "bytes", "tokens of GPT-2", "of the loaded model", "no valid UTF-8 alone"]
text = "Three short texts under GPT-2's and the loaded model's tokenizer; last, how many of the latter's tokens are "
text += "parts of characters."
results.markdown("tokens", header, cells, text, seeds=())
results.save(data={task.name: task.sha256})

# %% [markdown]
# ## Sources
#
# - Radford et al. 2019, *Language Models are Unsupervised Multitask Learners* (GPT-2); weights
#   `openai-community/gpt2`. The stand-in: SmolLM2-135M-Instruct, Allal et al. 2025, arXiv:2502.02737.
# - Vaswani et al. 2017, *Attention Is All You Need*, arXiv:1706.03762; Ba et al. 2016, *Layer Normalization*,
#   arXiv:1607.06450; Hendrycks and Gimpel 2016, *Gaussian Error Linear Units*, arXiv:1606.08415.
# - Su et al. 2021, *RoFormer*, arXiv:2104.09864 (RoPE); Sennrich et al. 2016, arXiv:1508.07909 (BPE).
# - Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p).
# - Clark et al. 2019, *What Does BERT Look At?*, arXiv:1906.04341; Jain and Wallace 2019, *Attention is not
#   Explanation*, arXiv:1902.10186.
# - Li Bai, 静夜思. Sentences without a source are ours. Code: Hugging Face transformers for the model that
#   the written-out pass is compared with.
