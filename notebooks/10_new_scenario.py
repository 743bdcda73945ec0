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
# # 10 New scenarios
#
# Two things to do with the same model that are no text generation for its own sake: say facts in a sentence (and
# count which ones got lost), and compress text without loss.

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
import inspect, tempfile
from pathlib import Path

import pandas as pd
from IPython.display import Code, display

from lib import plots, profile
from lib.explore import compress, compress_checks, compress_files, compressors, data_to_text
from lib import results, tasks, train
from lib.models import load_base

started = results.start()
budget, seeds = profile.current().scenario, profile.current().seeds
base = load_base()
provenance = results.provenance(base, seeds)
tables = {}

# %% [markdown]
# # (a) Data to text
#
# ## The principle
#
# E2E NLG: three to eight facts about a restaurant to a sentence. A language model can learn the task from gradient
# steps on pairs $(x, y)$, or be shown $k$ pairs in its prompt and left as it is:
#
# $$\text{fine-tuned: } p_{\theta'}(y \mid x), \quad \theta' = \arg\min_\theta -\sum \log p_\theta(y_i \mid x_i)
# \qquad\qquad k\text{-shot: } p_\theta(y \mid x_1 y_1 \dots x_k y_k\, x)$$
#
# - $\text{SER} = (\text{missing} + \text{wrong} + \text{added}) / \text{slots}$, by the rules of `lib/explore/slots.py`.
# - E2E comes from `DATA_MIRROR` or the hub. Without it this half is skipped and says so.

# %%
try:
    e2e = tasks.load_task("e2e")
    shown = data_to_text.draw_examples(e2e, 1, seed=0)
    print(data_to_text.few_shot_prompt(shown, e2e.test[0].prompt))
except tasks.TaskUnavailable as reason:
    e2e = None
    print(f"Skipped: {reason}")

# %% [markdown]
# ## The change
#
# - Nothing in the model: only what stands before the input. More examples add to fewer, in one order per seed.

# %%
display(Code(inspect.getsource(data_to_text.draw_examples), language="python"))
display(Code(inspect.getsource(data_to_text.few_shot_prompt), language="python"))

# %% [markdown]
# ## The experiment
#
# - Same test inputs, same greedy decoding of at most 64 tokens, cut at the first line break. Few-shot: a draw of
#   examples per seed. Fine-tuned: a training per seed, on a small part of the rows that the published ones saw.

# %%
written = []
for shots in budget.shots if e2e else ():
    for seed in budget.shot_seeds if shots else budget.shot_seeds[:1]:
        written.append(data_to_text.write_texts(base, e2e, budget.e2e_inputs, shots=shots, seed=seed))

# %%
for method in budget.methods if e2e else ():
    for seed in seeds:
        run = train.finetune(
            base,
            e2e,
            method,
            seed,
            train_tokens=budget.e2e_tokens,
            pack_length=budget.e2e_step,
            batch_tokens=budget.e2e_step,
            evaluations=1,
            validation_documents=budget.e2e_validation,
        )
        written.append(data_to_text.write_texts(base, e2e, budget.e2e_inputs, run))

# %% [markdown]
# ## The result
#
# - Means over seeds. `kind`: `longer` is notebook 03's run as shipped, on all 630 inputs; `published` rows are other
#   models (GPT-2 medium and large, 355 and 774 M parameters) and budgets (five passes over 42,061 rows, beam search),
#   copied from their source; `human` tells what the slot check says of people.

# %%
if e2e:
    tables["e2e"] = data_to_text.e2e_table(base, e2e, written)
    shown = ["bleu", "nist", "rouge_l", "chrf", "ser", "perfect", "n_train_tokens", "inputs"]
    display(tables["e2e"].groupby(["kind", "system"], sort=False)[shown].mean().round(3))

# %% [markdown]
# - Fine-tuned models have no examples in their prompt, and people have no prompt: level lines.

# %%
if e2e:
    titles = {"bleu": "BLEU (higher is better)", "ser": "SER (lower is better)"}
    lines = data_to_text.against_shots(tables["e2e"], titles)
    figure = plots.lines(
        lines,
        "shots",
        "value",
        "series",
        panel="measure",
        logx=False,
        sharey=False,
        xlabel="examples in the prompt",
        ylabel=" ",
    )
    for panel in figure.axes:
        panel.set_xticks(budget.shots)
    text = f"E2E: few-shot against fine-tuned, {budget.e2e_inputs} test inputs, greedy."
    path = plots.save_figure(figure, "10_few_shot", plots.caption(text, provenance, budget.e2e_tokens))

# %% [markdown]
# ## Errors by number of slots
#
# - The more facts, the more can be lost. `missing`, `wrong` and `added` are per text.

# %%
if e2e:
    tables["e2e_by_slots"] = by_slots = data_to_text.by_slots(e2e, written)
    best_shots = f"{max(budget.shots)}-shot"
    kept = by_slots[by_slots["system"].isin([best_shots, "people"]) | by_slots["system"].str.startswith("fine")]
    columns = ["texts", "missing", "wrong", "added", "ser", "perfect"]
    display(kept.groupby(["system", "slots"], sort=False)[columns].mean().round(2))

# %%
if e2e:
    figure = plots.lines(
        kept,
        "slots",
        "ser",
        "system",
        logx=False,
        xlabel="slots in the input",
        ylabel="slot errors / slots (lower is better)",
    )
    text = f"E2E: slot errors by the number of facts, {budget.e2e_inputs} test inputs."
    path = plots.save_figure(figure, "10_slots", plots.caption(text, provenance, budget.e2e_tokens))

# %% [markdown]
# # (b) Compression
#
# ## The principle
#
# An arithmetic coder narrows an interval token by token: a token of probability $p$ leaves $p$ of its width, and a
# number inside the last interval, written in binary, is the compressed text. Its length is the cross-entropy:
#
# $$L(x) = \Big\lceil -\sum_t \log_2 p(x_t \mid x_{<t}) \Big\rceil + O(1) \text{ bits}$$
#
# - A better prediction is a smaller file: bits per byte stop being a measure and become bytes on the disk.
# - What each token of a short text costs the base model:

# %%
codec = compress.Codec(base.model, base.tokenizer, batch=budget.batch)
compress_checks.token_bits(codec, "A tool to visualize the network traffic.").round(4)

# %% [markdown]
# ## The change
#
# - The model is left as it is; around it one function walks through the text for both directions. The encoder's
#   `code` writes the tokens that it knows, the decoder's reads them from the file.

# %%
display(Code(inspect.getsource(compress.walk), language="python"))

# %% [markdown]
# ## Why both directions must compute alike
#
# - One bit of difference in a probability, and the decoder reads another token; all after it is noise. Floating-point
#   sums depend on their order, hence on batch shape, threads and on reading a cache. `identical`: share of
#   positions whose whole distribution is equal in every bit.
# - So the file records batch, window and threads, decoding takes them from there, and the content's checksum refuses
#   what came out different. An archive is bound to the kind of machine that wrote it.

# %%
texts = compressors.domains(budget.archive_documents, budget.archive_bytes)
tables["bit_identity"] = compress_checks.bit_identity(codec, texts["debian"][:8], budget.probe_tokens)
tables["bit_identity"]

# %% [markdown]
# ## The experiment
#
# - `debian`: test documents of the domain that "after" was fine-tuned on, prompt and description, though the loss
#   was that of the description. `release_notes`: written in 2026, after the training data of GPT-2 and of the
#   stand-in ended. `tang`: Chinese, a control far from both. All are short: at most `archive_bytes` of lib/profile.py.
# - "After" are the runs of notebook 02, all seeds. Every archive is decoded by `python -m lib decompress` in another
#   process and compared byte for byte. The rivals stand at their strongest settings.

# %%
training = compressors.training_texts()
rivals = {name: make(training) for name, make in compressors.COMPRESSORS.items()}
others = []
for domain, documents in texts.items():
    for name, rival in rivals.items():
        others += compressors.measure_compressor(name, rival, domain, documents)

# %%
folder = compressors.base_folder()
rows = compressors.measure_model(codec, "before", 0, texts, folder)
debian = tasks.load_task("debian")
for seed in seeds:
    run = train.finetune(base, debian, "full", seed)
    after = compress.Codec(run.model, base.tokenizer, run.path.name, batch=budget.batch)
    rows += compressors.measure_model(after, "after", seed, texts, run.path)
tables["compression"] = table = pd.DataFrame(others + rows).drop(columns="document_bits")
tables["compression_by_document"] = by_document = compressors.by_document(rows, texts)

# %% [markdown]
# ## The result
#
# - `each`: documents one by one, headers and all; `together`: one after the other as a single file, where gzip and
#   the others may look back at earlier documents. `archive`: the model's file, whose documents do not see each
#   other. It holds where each document ends, a checksum, and a header that names the model and the machine: a
#   hundred bytes that weigh on short texts, and a run's name is longer than `base`. `together` holds none of it.
# - The dictionary and the training text are the rivals' fine-tuning. They get all 7,637 training documents, more than
#   the model's budget of tokens reaches.

# %%
keys = ["compressor", "packaging"]
bits = table.pivot_table(index=keys, columns="domain", values="bits_per_byte", sort=False)
bits.round(3)

# %% [markdown]
# - The same as a figure, without `each`. Lower is better; plain UTF-8 text is 8.

# %%
one_file = table[table["packaging"] != "each"]
means = one_file.groupby(["domain", "compressor"], sort=False)["bits_per_byte"].mean()
means = means.rename("bits per byte").reset_index()
means["compressor"] = means["compressor"].str.replace(" ", "\N{NO-BREAK SPACE}")  # bars shows plain ones as a sign
figure = plots.bars(means, "compressor", "bits per byte", panel="domain")
sizes = ", ".join(f"{domain} {len(t)}" for domain, t in texts.items())
text = f"Bits per byte in real bytes, all documents in one file ({sizes} documents)."
path = plots.save_figure(figure, "10_compression", plots.caption(text, provenance, profile.current().train_tokens))

# %% [markdown]
# ## What it costs
#
# - Speed, and from how much text on the model's weights (float32, counted once) pay for themselves against the
#   domain's smallest rival.

# %%
speed = ["encode_kb_per_s", "decode_kb_per_s"]
display(one_file.groupby("compressor", sort=False)[speed].mean().round(2))
tables["break_even"] = break_even = compressors.break_even(table)
break_even.groupby(["domain", "compressor", "rival"], sort=False)[["saved_bits_per_byte", "megabytes"]].mean()

# %% [markdown]
# ## One file, from the shell
#
# - A single short document pays for the header. The damaged copy differs in one bit.

# %%
folder = Path(tempfile.mkdtemp())
note = min(texts["debian"], key=len)
(folder / "note.txt").write_bytes(note)
print(compress_files.last_line(compress_files.shell(folder, "compress", "note.txt")))
packed = (folder / "note.txt.lmz").read_bytes()
(folder / "damaged.lmz").write_bytes(packed[:-20] + bytes([packed[-20] ^ 1]) + packed[-19:])
for name in ("note.txt.lmz", "damaged.lmz"):
    done = compress_files.shell(folder, "decompress", name, "-o", f"{name}.out")
    print(compress_files.last_line(done))
same = (folder / "note.txt.lmz.out").read_bytes() == note
print(f"Identical: {same}. Written from the damaged file: {(folder / 'damaged.lmz.out').exists()}.")

# %%
alone = {name: len(rival.encode(note)) for name, rival in rivals.items()}
tables["one_file"] = pd.DataFrame(
    [
        {"compressor": name, "original_bytes": len(note), "compressed_bytes": size}
        for name, size in {**alone, "model before": len(packed)}.items()
    ]
)
tables["one_file"]

# %%
data = {
    "debian": debian.sha256,
    "tang": tasks.load_task("tang").sha256,
    "release_notes": compressors.notes_sha256(),
} | ({"e2e": e2e.sha256} if e2e else {})
path = results.save("10_new_scenario", tables, base=base, seeds=seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# - Data to text: means with 95 % t intervals over seeds; then how far from the published rows.

# %%
for line in data_to_text.findings(tables["e2e"], tables["e2e_by_slots"]) if e2e else ():
    print(line)
if not e2e:
    print("E2E was not within reach: no statement.")

# %% [markdown]
# - Compression: what the round trip found, what fine-tuning changed, what the best rival needs.

# %%
for line in compressors.findings(table, break_even, by_document):
    print(line)

# %%
check = tables["bit_identity"].set_index("arrangement")
for row in check.itertuples():
    print(f"{row.Index}: {row.identical:.0%} of {row.positions} distributions equal in every bit.")

# %% [markdown]
# ## What it does not show
#
# - E2E: one form of prompt and greedy decoding; another wording, beam search or an instruction could help few-shot.
#   Our rows are means over a part of the test inputs and of another base model where GPT-2 was not within reach;
#   our ROUGE-L is not coco-caption's. The slot check is by rules, and people do not score 0 on it.
# - Compression: a few documents of three kinds, short ones. Long texts would let every compressor learn on the way, and
#   dedicated ones (PPM, context mixing such as cmix, with no pretrained weights to ship) are not among the rivals.
# - `debian` is public text, the base may have seen it; `release_notes` it can't have seen, but has seen their kind.
# - An archive decodes on the same kind of processor with the same torch, or is refused. For a format that lasts, the
#   model would have to compute in integers.
# - The weights count as float32; quantised ones would be a quarter or less, with other probabilities.
#
# ## Sources
#
# - E2E: Novikova et al. 2017, arXiv:1706.09254; slot errors: Dušek et al. 2019, arXiv:1911.03905; published rows: Hu
#   et al. 2021, arXiv:2106.09685. Few-shot: Brown et al. 2020, arXiv:2005.14165.
# - Arithmetic coding: Rissanen 1976; Witten, Neal and Cleary 1987. Range coder: constriction, Bamler 2022,
#   arXiv:2201.01741. Language models as compressors: Delétang et al. 2024, arXiv:2309.10668; Bellard's NNCP and
#   `ts_zip`. Brotli: RFC 7932; Zstandard: RFC 8878.
