# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
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
# then still GPT-2's, from its configuration, and section 2.5 names what differs.

# %% [markdown]
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.

# %%
REPOSITORY = ""  # on Colab: the address of your team's copy, such as https://github.com/you/coursework
import os, subprocess, sys

if "google.colab" in sys.modules:
    if not os.path.exists("/content/project"):
        subprocess.run(["git", "clone", "-q", REPOSITORY, "/content/project"], check=True)
    subprocess.run([sys.executable, "-m", "lib", "colab"], cwd="/content/project", check=True)
    os.chdir("/content/project/notebooks")
    sys.path.insert(0, "..")

# %%
import inspect

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display

from lib import generate, metrics, models, plots, profile, results, tasks
from lib.explore import gpt2, inside

started, settings = results.start(), profile.current()
pd.set_option("display.max_colwidth", 160, "display.max_rows", 80)

# %% [markdown]
# ## 1 Load the model
#
# - One line says which model came, from where, and whether it is the stand-in. The order of places is in
#   `lib/models.py`: `BASE_MODEL`, a local folder, the Hugging Face cache, the hub or a mirror, the stand-in.

# %%
base = models.load_base()
model, tokenizer = base.model, base.tokenizer

# %% [markdown]
# - Everything below that depends on the loaded model carries its name; a stand-in's number is never GPT-2's.


# %%
def keep(figure, name: str, text: str) -> None:
    plots.save_figure(figure, name, plots.caption(text, results.provenance(base)))


untrained = base.name.startswith("tiny-random")  # PROFILE=fast runs on a tiny random model
of_what = base.name + ", not GPT-2 117M" * base.stand_in + ", untrained" * untrained
print(f"Profile {settings.name}. Measured below: {of_what}.")

# %% [markdown]
# ## 2 The structure of GPT-2
#
# GPT-2 (Radford et al. 2019) is a decoder-only transformer. It reads $T$ tokens $x_0 \dots x_{T-1}$ and
# gives, at every place $t$, a probability for each of the $V$ tokens that could follow $x_0 \dots x_t$. It
# was trained to maximise $\sum_t \log p(x_{t+1} \mid x_0 \dots x_t)$, nothing else.
#
# ### 2.1 The picture
#
# - Follow the arrow from the token ids up: one vector of width 768 per token, which 12 equal blocks refine.
# - Each sublayer *adds* to that vector (the lines around it): the residual stream.

# %%
figure = inside.structure_figure(gpt2.GPT2_117M)
text = "GPT-2 117M from token ids to logits, with the sizes of its configuration."
path = plots.save_figure(figure, "01_structure", text)

# %% [markdown]
# ### 2.2 Where the parameters are
#
# - The formula column is made of the tensors' shapes; the rows sum to the total, 124,439,808.
# - "117M" is the paper's count. The head has no numbers of its own: it is the token table, transposed.

# %%
gpt2_parameters = gpt2.parameter_table(gpt2.GPT2_117M)
parts = gpt2_parameters.set_index("component").parameters
assert parts.drop("total").sum() == parts["total"] == models.GPT2_PARAMETERS
as_text = {"parameters": "{:,}".format, "share": "{:.2%}".format}
gpt2_parameters.assign(**{c: gpt2_parameters[c].map(f) for c, f in as_text.items()})

# %% [markdown]
# ### 2.3 The forward pass, written out
#
# The code shown is what runs: `lib/explore/gpt2.py`, plain functions on the model's own tensors. $B$ texts in the
# batch, $T$ tokens, width $C = 768$, $H = 12$ heads of width $D = C / H = 64$.
#
# - **Embedding.** The vector of token $x_t$ plus the vector of place $t$, both learned:
#   $h_t = W_e[x_t] + W_p[t]$. Place 1,024 has no vector: the context ends there.


# %%
def show(*functions) -> None:
    code = "\n\n".join(inspect.getsource(f) for f in functions)
    display(Markdown(f"```python\n{code}```"))


show(gpt2.embed)

# %% [markdown]
# - **Layer norm** in front of every sublayer, over the $C$ numbers of one token:
#   $\mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot g + b$, with $g$ and $b$ learned.
# - **Linear**: GPT-2 stores its matrices as (in, out), the transpose of torch's `nn.Linear`.

# %%
show(gpt2.layer_norm, gpt2.linear)

# %% [markdown]
# - **Causal self-attention.** Each token asks with a query, and is found by a key, in each head:
#   $A = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{D}} + M\right)$, $\mathrm{head} = A V$, where
#   $M = -\infty$ above the diagonal, so that no token sees a later one, and $0$ elsewhere.
# - $\sqrt{D}$ keeps the spread of the scores independent of the head's width: softmax does not saturate.

# %%
show(gpt2.attention)

# %% [markdown]
# - **MLP**, each token on its own: $W_2\,\mathrm{GELU}(W_1 x + b_1) + b_2$, four times as wide inside, with
#   $\mathrm{GELU}(x) \approx \frac{x}{2}\left(1 + \tanh(\sqrt{2 / \pi}\,(x + 0.044715\,x^3))\right)$.

# %%
show(gpt2.gelu, gpt2.mlp)

# %% [markdown]
# - **Block**: $h \leftarrow h + \mathrm{Attention}(\mathrm{LN}_1(h))$, then
#   $h \leftarrow h + \mathrm{MLP}(\mathrm{LN}_2(h))$.
# - **Head**: the logits $z_t = W_e\,\mathrm{LN}_f(h_t)$, one per token of the vocabulary; $W_e$ serves both
#   ends.

# %%
show(gpt2.block, gpt2.blocks, gpt2.forward)

# %% [markdown]
# ### 2.4 Is it right?
#
# - The same weights and ids through transformers' own GPT-2: the largest difference of a logit must stay
#   below $10^{-4}$. With the stand-in loaded the weights are random, every norm and bias too, so that none
#   of them can hide a mistake; the size is that of GPT-2 117M (under `fast`, the tiny model's own).

# %%
reference = model if model.config.model_type == "gpt2" else gpt2.random_gpt2().to(model.device)
params, n_head = gpt2.parameters_of(reference), reference.config.n_head
V = reference.config.vocab_size
ids = torch.randint(V, (2, 24), generator=torch.Generator().manual_seed(0)).to(model.device)  # (B, T)
with torch.no_grad():
    ours, theirs = gpt2.forward(params, ids, n_head), reference(ids).logits  # (B, T, V)
difference = (ours - theirs).abs().max().item()
count = sum(p.numel() for p in reference.parameters())
print(f"{count:,} parameters, logits {tuple(ours.shape)}, largest difference {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# - **No look into the future**: with every token from place 12 on replaced, the logits of the places before
#   stay as they were. A model that fails this test has a perplexity that means nothing.

# %%
changed = ids.clone()
changed[:, 12:] = (changed[:, 12:] + 1) % V
with torch.no_grad():
    moved = (gpt2.forward(params, changed, n_head) - ours).abs().amax((0, 2))  # (T,)
leak, after = moved[:12].max().item(), moved[12:].max().item()
print(f"Places 0 to 11 moved by {leak:.1e}, places 12 to 23 by up to {after:.2f}.")
assert leak < 1e-5 < after
del reference, params

# %% [markdown]
# ### 2.5 What differs in the loaded model
#
# - The left column is GPT-2 117M's configuration, the right one that of the model loaded in section 1.
#   Rows with `differs = True` are where the explanation above does not describe the loaded model.

# %%
differences = gpt2.differences(base)
print(f"{differences.differs.sum()} of {len(differences)} features differ.")
differences

# %% [markdown]
# - The same count for the loaded model: another shape spends its numbers elsewhere.

# %%
loaded_parameters = gpt2.parameter_table(model)
assert loaded_parameters.parameters.iloc[-1] == base.parameters
loaded_parameters.assign(**{c: loaded_parameters[c].map(f) for c, f in as_text.items()})

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
cut = {
    name: [generate.token_text(tokenizer, i) for i in tokenizer(text, add_special_tokens=False).input_ids]
    for name, text in TEXTS.items()
}
figure = plots.strips({"tokens, and how many": cut})
keep(figure, "01_tokens", "A sentence in English and in Chinese, and a couplet, as tokens.")

# %% [markdown]
# - Fewer bytes per token: a longer sequence for the same text, and less of it in the context.
# - `broken` counts the tokens that are no valid UTF-8 alone: the model must emit them in the right order.

# %%
rows = []
for name, sentence in TEXTS.items():
    token_ids = tokenizer(sentence, add_special_tokens=False).input_ids
    assert tokenizer.decode(token_ids) == sentence  # nothing is lost
    broken = sum("\ufffd" in tokenizer.decode([i]) for i in token_ids)
    rows.append((name, len(sentence), len(sentence.encode()), len(token_ids), broken))
tokens = pd.DataFrame(rows, columns=["text", "characters", "bytes", "tokens", "broken"])
tokens["bytes_per_token"] = tokens.bytes / tokens.tokens
tokens["characters_per_token"] = tokens.characters / tokens.tokens
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
# - One prompt, and what each setting makes of the same distribution. The settings shift probability; the
#   order of the tokens stays.

# %%
PROMPT = "The weather was cold, so she put on her"
odds = generate.next_token_distribution(model, tokenizer, PROMPT)
figure = plots.bars(odds)
keep(figure, "01_next_token", f"The next token after “{PROMPT}” under six settings.")
odds.pivot(index="token", columns="setting", values="probability").loc[
    odds.token.unique(), odds.setting.unique()
].round(4)

# %% [markdown]
# - How many of the $V$ tokens can be drawn at all: top-k fixes the number, top-p lets the model's own
#   certainty fix it.

# %%
prompt_ids = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad(), profile.autocast(), metrics.float32_logits(model):  # as generate computes
    p = model(prompt_ids.to(model.device)).logits[0, -1].softmax(-1)  # (V,)
mass = p.sort(descending=True).values.cumsum(0)
nucleus = int((mass < 0.9).sum()) + 1
print(f"Of {len(p):,} tokens greedy keeps 1, top-k 5 keeps 5, top-p 0.9 keeps {nucleus:,}.")
print(f"The best five hold {mass[4]:.1%} of the probability.")

# %% [markdown]
# - **Beam search** step by step, three beams. `logprob` is the sum so far, in nats; a beam that was behind
#   can overtake, which greedy decoding can't. The best `score`, the sum per token, wins.

# %%
beams = generate.beam_trace(model, tokenizer, PROMPT, num_beams=3, steps=4)
beams.round(3)

# %% [markdown]
# - The same prompt continued under each rule; sampling with three seeds, which may go three ways.


# %%
def continued(decoding: str, seed: int) -> str:
    choice = generate.DECODING[decoding]
    return generate.generate(model, tokenizer, [PROMPT], length, seed=seed, **choice)[0]


runs, length = [*generate.DECODING, "sample", "sample"], min(30, settings.max_new_tokens)
continuations = pd.DataFrame({"decoding": sorted(runs), "seed": [0, 0, 0, 1, 2]})
continuations["text"] = [continued(r.decoding, r.seed) for r in continuations.itertuples()]
print("; ".join(f"{name}: {choice}" for name, choice in generate.DECODING.items()))
continuations

# %% [markdown]
# ## 5 A batch with left padding equals one prompt at a time
#
# Prompts of unequal length need padding to share a batch. Generation appends on the right, so padding
# stands on the **left**, hidden by the attention mask, and positions are counted from the first real token.
#
# - The first row must be rounding alone. The others are the usual mistakes: logits from the wrong place, or
#   with padding among what the model read. A learned position table also minds a shifted count; RoPE,
#   being relative, does not.

# %%
PROMPTS = ["The", "My favourite food is", "In a small village by the sea there lived an old man who"]
padding = inside.padding_ways(model, tokenizer, PROMPTS)
assert padding.largest_difference[0] < 1e-3
padding.assign(largest_difference=padding.largest_difference.map("{:.1e}".format))

# %% [markdown]
# - The texts, continued greedily in one batch; `same` compares each with the prompt continued alone.

# %%
batch = inside.batch_or_alone(model, tokenizer, PROMPTS, max_new_tokens=min(20, settings.max_new_tokens))
print(f"{batch.same.sum()} of {len(batch)} texts are the same in the batch as alone.")
batch

# %% [markdown]
# ## 6 A look inside
#
# ### 6.1 Attention maps
#
# - For one sentence, the head that looks most at the token before, at the token itself, at the first
#   token, and the one that spreads its attention most evenly. Row: who looks; column: at whom.
# - Above the diagonal there is nothing: no token attends to a later one.

# %%
SENTENCE = "The cat sat on the mat because it was tired, and the dog watched it sleep."
ids = tokenizer(SENTENCE, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
maps = inside.attention_maps(model, ids)  # (L, H, T, T)
assert maps.triu(1).max() == 0
heads = inside.pick_heads(inside.head_patterns(maps))
words = [generate.token_text(tokenizer, i) for i in ids[0].tolist()]
figure = inside.attention_figure(maps, heads, words)
keep(figure, "01_attention", "Four attention heads, each the most marked of its kind.")

# %% [markdown]
# - Picked as the highest of all heads on one sentence, a value flatters itself. `elsewhere` is the same
#   head on another sentence, `mean` all heads on the first: a pattern of the head, not of the sentence,
#   stays far from the mean.

# %%
OTHER = "Several years later the company moved its main office to Berlin and hired forty people."
ids = tokenizer(OTHER, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
patterns, other = (inside.head_patterns(maps), inside.head_patterns(inside.attention_maps(model, ids)))
other = other.set_index(["layer", "head"])
heads["elsewhere"] = [other.loc[(h.layer, h.head), h.pattern] for h in heads.itertuples()]
heads["mean"] = [patterns[h.pattern].mean() for h in heads.itertuples()]
heads.round(3)

# %% [markdown]
# ### 6.2 Positions
#
# - Which positions look alike to the model. With a learned table (GPT-2): the cosine of its rows. With
#   RoPE (the stand-in): the relative score $\frac{2}{D}\sum_i \cos((m - n)\,\theta_i)$ of a query at $m$ and
#   a key at $n$, both of ones, a property of the formula and not of training.
# - A learned table with random weights shows noise; only a trained one has anything to say.

# %%
similarity, what = inside.position_similarity(model, 1024)
step = max(1, len(similarity) // 32)
coarse, places = similarity[::step, ::step], range(0, len(similarity), step)
figure = plots.similarity(coarse, title="Positions", label=what)
ticks = range(0, len(places), 8)
for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
    axis.set_ticks(ticks, [str(places[i]) for i in ticks])
keep(figure, "01_positions", f"Positions compared, every {step}th of {len(similarity):,}: {what}.")

# %% [markdown]
# - The same matrix by distance $m - n$: the line is the mean, the band reaches from the lowest to the highest
#   pair. No band: the value depends on the distance alone.

# %%
distances = inside.by_distance(similarity)
figure, axes = plt.subplots()
axes.fill_between(distances.distance, distances.lowest, distances.highest, alpha=0.3)
axes.plot(distances.distance, distances["mean"])
axes.set(xlabel="distance of two positions", ylabel=what)
keep(figure, "01_distance", f"Positions compared by their distance, mean and range: {what}.")
band = (distances.highest - distances.lowest).max()
print(f"Widest band {band:.1e}: {'a relative' if band < 1e-4 else 'not a purely relative'} position code.")

# %% [markdown]
# ## 7 Before fine-tuning
#
# - Three held-out prompts of the task that notebook 02 fine-tunes on: a package's name, section and tags,
#   and the description that people wrote for it. Look at whether the text begins like a one-line summary,
#   says what the tags say, and ends.

# %%
task = tasks.load_task()
examples, choice = task.validation[:3], generate.DECODING["sample"]
prompts = [e.prompt for e in examples]
texts = generate.generate(model, tokenizer, prompts, settings.max_new_tokens, **choice)

# %% [markdown]
# - The prompt, what people wrote after it, what the model wrote.

# %%
samples = pd.DataFrame({"id": [e.id for e in examples], "prompt": prompts, "text": texts})
samples = samples.assign(target=[e.target for e in examples], task=task.name, stage="before")
for row in samples.itertuples():
    print(f"{row.prompt}\n[people] {row.target}\n\n[{base.name}] {row.text}\n\n{'-' * 80}\n")

# %% [markdown]
# ## 8 Results
#
# - The attention maps and the position matrix as one row per pair, lower triangle: figures can be redrawn.


# %%
def pairs(h) -> pd.DataFrame:
    weight = maps[h.layer, h.head, q, k].numpy()
    return pd.DataFrame({"layer": h.layer, "head": h.head, "query": q, "key": k, "weight": weight})


q, k = torch.tril_indices(len(words), len(words)).numpy()
m, n = torch.tril_indices(len(coarse), len(coarse)).numpy()
positions = {"m": m * step, "n": n * step, "similarity": coarse[m, n].numpy()}
both = {"GPT-2 117M": gpt2_parameters, base.name: loaded_parameters}
tables = {
    "parameters": pd.concat([table.assign(model=name) for name, table in both.items()]),
    "attention": pd.concat([pairs(h) for h in heads.itertuples()]),
    "attention_tokens": [{"place": i, "token": word} for i, word in enumerate(words)],
    "positions": pd.DataFrame(positions),
}

# %% [markdown]
# - Everything goes to `data/results/01_load_and_generate.json`, with the model, the versions and the time.

# %%
forward = {"parameters": count, "largest_difference": difference, "future_leak": leak}
columns = ["feature", "gpt2_117m", "loaded", "differs"]
tables |= {"forward": [forward], "differences": differences.set_axis(columns, axis=1)}
tables |= {"tokens": tokens, "next_token": odds.assign(prompt=PROMPT), "beams": beams}
tables |= {"continuations": continuations, "padding": padding, "batch": batch, "samples": samples}
near = (distances.distance < 32) | (distances.distance % 8 == 0)  # every eighth is enough further out
tables |= {"heads": heads, "position_distance": distances[near]}
data = {task.name: task.sha256}
path = results.save("01_load_and_generate", tables, base=base, seeds=[0, 1, 2], data=data, started=started)

# %% [markdown]
# ## What we saw

# %%
percent = (parts / parts["total"]).map("{:.0%}".format)
english, chinese = (tokens.set_index("text").bytes_per_token[n] for n in ("English", "Chinese"))
previous, first = (next(heads[heads.pattern == n].itertuples()) for n in ("previous", "first"))
masked, unmasked = padding.largest_difference[0], padding.largest_difference[2]
display(
    Markdown(f"""
- GPT-2 117M: {percent["MLP"]} of the parameters are MLPs, {percent["token embedding"]} the token table.
- Written out, it equals transformers' logits to {difference:.0e}; from the future nothing leaks ({leak:.0e}).
- The loaded model, {of_what}: {english:.1f} bytes per token in English, {chinese:.1f} in Chinese.
- After “{PROMPT}” the likeliest token has {p.max():.1%}; 90 % of the probability takes {nucleus:,} tokens.
- In a left-padded batch the logits move by {masked:.0e} at most, without the mask by {unmasked:.1f}.
- Block {previous.layer}, head {previous.head} gives {previous.value:.0%} of its attention to the token before
  ({previous.elsewhere:.0%} on another sentence); the mean head gives {first.mean:.0%} to the first.
""")
)

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
