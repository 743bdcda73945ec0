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
# # 10 New scenarios
#
# Two things to do with the same model that are no text generation for its own sake: say facts in a sentence (and
# count which ones got lost), and compress text without loss.

# %% [markdown]
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.

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
import gzip, hashlib, json, lzma, math, re, tempfile, time
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import brotli
import numpy as np
import pandas as pd
import torch
import zstandard
from IPython.display import display
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lib import hub, plots, profile, tasks, train
from lib import texts as measures
from lib.explore import compress, e2e
from lib.generate import generate, token_text
from lib.metrics import mean_interval, paired
from lib.models import load_base
from lib.results import Results, interval, kept, load, number, span, write_bytes

# %% [markdown]
# - The budget: (fast, cpu, full).

# %%
budget = profile.budget(
    seeds=((0, 1), (0,), (0, 1, 2)),
    methods=(("full", "lora"), ("full",), ("full",)),  # fine-tuned on E2E with every seed
    e2e_tokens=(3_000, 8_000, 16_000),  # that one of these runs sees
    e2e_step=(640, 512, 512),  # tokens in one forward pass and behind one optimizer step
    e2e_validation=(8, 16, 16),  # documents behind a held-out evaluation: one before, one after
    e2e_inputs=(6, 24, 64),  # leading test inputs that every system writes for
    new_tokens=(24, 64, 64),  # 64 as the published rows: eval_len in microsoft/LoRA, examples/NLG/README.md
    shots=((0, 1), (0, 3), (0, 1, 3)),  # examples in the prompt
    shot_seeds=((0, 1), (0,), (0, 1, 2)),  # draws of the examples
    documents=(  # of each domain, compressed
        {"debian": 6, "release_notes": 2, "tang": 3},
        {"debian": 12, "release_notes": 6, "tang": 12},
        {"debian": 16, "release_notes": 8, "tang": 12},
    ),
    document_bytes=(700, 700, 700),  # of the longest of them
    batch=(4, 64, 64),  # documents coded side by side
    probe_tokens=(6, 8, 16),  # of each document, where the bits of two computations are compared
    alice_bytes=(500, 8_000, 152_089),  # leading ones of a file; the last is all of it
    notes_bytes=(500, 8_000, 32_768),
    cuts=(4, 16, 16),  # streams that a file is coded in
    fewer_cuts=(2, 0, 8),  # and, after these had missed the mark, the whole of alice29.txt
    window=(64, 4_096, 4_096),  # tokens of context then, or as many as the model has positions
)

# %% [markdown]
# - The base model, and this notebook's results.

# %%
base = load_base()
results = Results("10_new_scenario", base=base, seeds=budget.seeds)

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
# - $\text{SER} = (\text{missing} + \text{wrong} + \text{added}) / \text{slots}$, by the rules of `lib/explore/e2e.py`.
# - E2E comes from `DATA_MIRROR` or the hub. Without it this half is skipped and says so.

# %%
task = hub.reached(tasks.load_task, "e2e")
if task and profile.name() == "fast":  # every run encodes it whole
    task = task.replace(train=tasks.head(task["train"], 2_000))
inputs = tasks.head(task["test"], budget.e2e_inputs) if task else []
has_e2e = "e2e" in load(results.notebook)["tables"] if results.stored else task is not None

# %% [markdown]
# ## The change
#
# - Nothing in the model: only what stands before the input. The examples are of different inputs, and more of them add
#   to fewer, in one order per seed. A model that was tuned to chat is also asked as it is used to.

# %%
ASK = "Put these facts about a restaurant into one or two sentences. "


def drawn_examples(shots: int, seed: int) -> list[dict]:
    groups = pd.Series(list(task["train"]["group"]))
    order = np.random.default_rng(seed).permutation(len(groups))
    return [task["train"][i] for i in groups[order].drop_duplicates().index[:shots].tolist()]


def few_shot_prompts(shots: int, seed: int) -> list[str]:
    """The examples, a line each, and each input in the same form."""
    examples = "".join(f"{row['prompt']}{row['target']}\n" for row in drawn_examples(shots, seed))
    return [examples + row["prompt"] for row in inputs]


# %% [markdown]
# - The same as turns of a chat; then one prompt with one example.


# %%
def chat_prompts(shots: int, seed: int) -> list[str]:
    turns = []
    for row in drawn_examples(shots, seed):
        turns += [{"role": "user", "content": ASK + row["prompt"].strip()}]
        turns += [{"role": "assistant", "content": row["target"].strip()}]
    asked = [[*turns, {"role": "user", "content": ASK + row["prompt"].strip()}] for row in inputs]
    return [base.tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in asked]


if task is not None:
    print(few_shot_prompts(1, seed=0)[0])

# %% [markdown]
# ## The experiment
#
# - Same test inputs, same greedy decoding, cut at the first line break, since a model that was not fine-tuned goes on
#   with the next example. Few-shot: a draw of examples per seed. Fine-tuned: a training per seed, on a small part of
#   the rows that the published ones saw.


# %%
def write(model, system: str, shots: int = 0, seed: int = 0, tokens: int = 0, ask=few_shot_prompts) -> dict:
    """What one system writes for the inputs."""
    prompts, label = ask(shots, seed), f"{system}, seed {seed}"
    texts = generate(model, base.tokenizer, prompts, budget.new_tokens, 64, seed, desc=label)
    texts = [text.strip().partition("\n")[0].strip() for text in texts]
    return {"system": system, "shots": shots, "seed": seed, "n_train_tokens": tokens, "texts": texts}


@cache
def written() -> list[dict]:
    """A row per system and seed."""
    out = []
    for shots in budget.shots:
        for seed in budget.shot_seeds if shots else budget.shot_seeds[:1]:
            out.append(write(base.model, f"{shots}-shot", shots, seed))
    small = {"pack_length": budget.e2e_step, "batch_tokens": budget.e2e_step, "train_tokens": budget.e2e_tokens}
    small |= {"evaluations": 1, "validation_documents": budget.e2e_validation}
    for method in budget.methods:
        for seed in budget.seeds:
            run = train.finetune(base, task, method, seed, **small)
            out.append(write(run.model, f"fine-tuned, {method}", seed=seed, tokens=run.summary["tokens"]))
    return out


# %% [markdown]
# - Beside them: published rows, other models (GPT-2 medium has 355 M parameters, large 774 M) and budgets (five passes
#   over 42,061 rows, beam search, all 630 inputs; ROUGE-L is coco-caption's); and people.

# %%
HU = "Hu et al. 2021, arXiv:2106.09685, table 3"
LI = f"{HU}, there from Li and Liang 2021, arXiv:2101.00190"
PUBLISHED = [
    {"system": "GPT-2 medium, full", "bleu": 68.2, "nist": 8.62, "rouge_l": 0.710, "source": LI},
    {"system": "GPT-2 medium, LoRA", "bleu": 70.4, "nist": 8.85, "rouge_l": 0.718, "source": HU},
    {"system": "GPT-2 large, full", "bleu": 68.5, "nist": 8.78, "rouge_l": 0.699, "source": LI},
    {"system": "GPT-2 large, LoRA", "bleu": 70.4, "nist": 8.89, "rouge_l": 0.720, "source": HU},
    # a user's comment of July 2025 in github.com/microsoft/LoRA/issues/165, with all five metrics
    {"system": "GPT-2 small, LoRA", "bleu": 67.27, "nist": 8.60, "rouge_l": 0.681, "source": "user report"},
]


# %% [markdown]
# - The table: every system's texts by the same measures, then people and the published rows.


# %%
def scored(system: dict) -> dict:
    references, texts = [list(row["references"]) for row in inputs], system["texts"]
    row = {k: v for k, v in system.items() if k != "texts"}
    row |= {"kind": "ours", "base_model": base.name, "inputs": len(inputs)}
    row |= {"bleu": measures.bleu(texts, references, lowercase=True)}
    row |= {name: getattr(measures, name)(texts, references) for name in ("rouge_l", "chrf")}
    return row | e2e.checks(inputs, texts)


def chat_rows() -> list[dict]:
    if not base.tokenizer.chat_template:
        return []
    asked = [(shots, seed) for shots in budget.shots if shots for seed in budget.shot_seeds]
    return [scored(write(base.model, f"{n}-shot, chat", n, seed, ask=chat_prompts)) for n, seed in asked]


def e2e_rows() -> list[dict]:
    rows = [scored(system) for system in written()]
    people = [(row["prompt"], text) for row in inputs for text in row["references"]]
    human = e2e.slot_errors([p for p, _ in people], [text for _, text in people])
    rows.append({"system": "people", "kind": "human", "inputs": len(inputs), **human})
    return rows + [{"kind": "published", "inputs": 630, **row} for row in PUBLISHED]


# %% [markdown]
# ## The result
#
# - Means over seeds. `human` tells what the slot check says of people.

# %%
if has_e2e:
    table = results.table("e2e", e2e_rows)
    if len(chat := results.table("e2e_chat", chat_rows, optional=True)):
        place = table["system"].str.startswith("fine-tuned").to_numpy().argmax()  # behind the other prompts
        table = pd.concat([table[:place], chat, table[place:]], ignore_index=True)
    columns = ["bleu", "nist", "rouge_l", "chrf", "ser", "perfect", "n_train_tokens", "inputs"]
    display(table.groupby(["kind", "system"], sort=False)[columns].mean().round(3))

# %% [markdown]
# ## Errors by number of slots
#
# - The more facts, the more can be lost. `missing`, `wrong` and `added` are per text.


# %%
def slot_rows() -> list[dict]:
    systems = [(s["system"], s["seed"], [[t] for t in s["texts"]]) for s in written()]
    rows = []
    for system, seed, lists in [*systems, ("people", 0, [row["references"] for row in inputs])]:
        checks = [e2e.slot_check(row["prompt"], t) for row, texts in zip(inputs, lists, strict=True) for t in texts]
        for slots, part in pd.DataFrame(checks).groupby("slots"):
            kinds = part[["missing", "wrong", "added"]]
            errors = kinds.sum(axis=1)
            row = {"system": system, "seed": seed, "slots": int(slots), "texts": len(part), **kinds.mean().to_dict()}
            rows.append(row | {"ser": errors.sum() / part["slots"].sum(), "perfect": (errors == 0).mean()})
    return rows


if has_e2e:
    by_slots = results.table("e2e_by_slots", slot_rows)
    systems = [f"{max(budget.shots)}-shot", "people"]
    chosen = by_slots["system"].isin(systems) | by_slots["system"].str.startswith("fine")
    columns = ["texts", "missing", "wrong", "added", "ser", "perfect"]
    display(by_slots[chosen].groupby(["system", "slots"], sort=False)[columns].mean().round(2))
    axes = {"logx": False, "xlabel": "slots in the input", "ylabel": "slot errors / slots (lower is better)"}
    figure = plots.lines(by_slots[chosen], "slots", "ser", "system", **axes)

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
def distributions(codec: compress.Codec, ids: np.ndarray) -> np.ndarray:
    """ids (rows, T) -> (T, rows, V): what `compress.walk` gives the coder."""
    seen = []

    def code(step, p):
        seen.append(p)
        return ids[:, step].astype(np.int32)

    compress.walk(codec, [ids.shape[1]] * len(ids), code)
    return np.stack(seen)


codec = compress.Codec(base.model, base.tokenizer, batch=budget.batch)
ids = compress.to_ids(base.tokenizer, b"A tool to visualize the network traffic.")
p = distributions(codec, np.array([ids]))[np.arange(len(ids)), 0, ids].astype(float)
pieces = [token_text(base.tokenizer, i) for i in ids]
pd.DataFrame({"token": pieces, "probability": p, "bits": -np.log2(p)}).round(4)

# %% [markdown]
# ## The change
#
# - The model is left as it is; around it one function walks through the text for both directions. The encoder's
#   `code` writes the tokens that it knows, the decoder's reads them from the file.

# %%
plots.source(compress.walk)

# %% [markdown]
# ## Why both directions must compute alike
#
# - One bit of difference in a probability, and the decoder reads another token; all after it is noise. Floating-point
#   sums depend on their order, hence on batch shape, threads and on reading a cache. `identical`: share of
#   positions whose whole distribution is equal in every bit.
# - So the file records batch, window and threads, decoding takes them from there, and the content's checksum refuses
#   what came out different. An archive is bound to the kind of machine that wrote it.


# %%
def release_notes() -> list[dict]:
    lines = (profile.DATA / "release_notes" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def texts() -> dict[str, list[bytes]]:
    """The leading documents of each domain that are short enough, in UTF-8."""
    # an order that depends on the ids alone: packages mixed
    notes = sorted(release_notes(), key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    out = {"release_notes": [row["text"].encode() for row in notes]}
    for name in ("debian", "tang"):
        out[name] = [(row["prompt"] + row["target"]).encode() for row in tasks.load_task(name)["test"]]
    fits = {name: [t for t in all_texts if len(t) <= budget.document_bytes] for name, all_texts in out.items()}
    return {name: fits[name][:count] for name, count in budget.documents.items()}


# %% [markdown]
# - The same model and text, computed again, with fewer documents side by side, with other threads, without a cache.


# %%
@torch.no_grad()
def one_pass(ids: np.ndarray) -> np.ndarray:
    start = np.full((len(ids), 1), base.tokenizer.eos_token_id)
    fed = torch.from_numpy(np.concatenate([start, ids[:, :-1]], axis=1)).to(base.model.device)
    return base.model(fed).logits.float().softmax(-1).transpose(0, 1).cpu().numpy()


def arrangements(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The distributions for ids (rows, T), computed in four ways."""
    threads, half = torch.get_num_threads(), ids[: max(len(ids) // 2, 1)]
    other = 1 if threads > 1 else 2
    torch.set_num_threads(other)
    threaded = distributions(codec, ids)
    torch.set_num_threads(threads)
    return {
        "the same again": distributions(codec, ids),
        f"{len(half)} documents side by side, not {len(ids)}": distributions(codec, half),
        f"{other} thread(s), not {threads}": threaded,
        "the text in one pass, no cache": one_pass(ids),
    }


# %% [markdown]
# - Look at `identical`: which arrangements give the same bits, and how far the others are off.


# %%
def bit_identity() -> list[dict]:
    ids = [compress.to_ids(base.tokenizer, d)[: budget.probe_tokens] for d in texts()["debian"][:8]]
    ids = np.array([i for i in ids if len(i) == budget.probe_tokens])
    reference, rows = distributions(codec, ids), []
    for name, p in arrangements(ids).items():
        same = (p == reference[:, : p.shape[1]]).all(-1)
        at = np.arange(ids.shape[1])[:, None], np.arange(p.shape[1])[None], ids[: p.shape[1]].T
        difference = np.abs(np.log(p[at]) - np.log(reference[at])).max()
        row = {"arrangement": name, "positions": same.size, "identical": same.mean()}
        rows.append(row | {"largest_difference": difference})  # of ln p of the token that follows
    return rows


identity = results.table("bit_identity", bit_identity)
identity

# %% [markdown]
# ## The experiment
#
# - `debian`: test documents of the domain that "after" was fine-tuned on, prompt and description, though the loss
#   was that of the description. `release_notes`: written in 2026, after the training data of GPT-2 and of the
#   stand-in ended. `tang`: Chinese, a control far from both. All are short: at most `document_bytes`.
# - The rivals at their strongest settings, each document alone (`each`), where headers and an empty memory weigh most,
#   and all as one file (`together`). The dictionary and the training text are the rivals' fine-tuning. They get all
#   7,637 training documents, more than the model's budget of tokens reaches. Brotli's own dictionary of web words
#   (RFC 7932, appendix A) is in the program.


# %%
def zstd(level: int, **options) -> tuple:
    return zstandard.ZstdCompressor(level=level, **options).compress, zstandard.ZstdDecompressor(**options).decompress


@cache
def rivals() -> dict[str, tuple]:
    """name -> (encode, decode, bytes of training text or dictionary that both sides need)"""
    training = [(row["prompt"] + row["target"]).encode() for row in tasks.load_task("debian")["train"]]
    # 512 KiB: best of 16, 64, 110 and 512 KiB on 100 debian test documents, one at a time
    dictionary = zstandard.train_dictionary(1 << 19, training)
    before = zstandard.ZstdCompressionDict(b"".join(training), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)  # all of it in one window
    after_it = zstandard.ZstdCompressor(compression_params=window, dict_data=before).compress
    and_back = zstandard.ZstdDecompressor(dict_data=before, max_window_size=1 << 27).decompress
    return {
        "gzip -9": (lambda data: gzip.compress(data, 9, mtime=0), gzip.decompress, 0),
        "xz -9e": (lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress, 0),
        "zstd -19": (*zstd(19), 0),
        "zstd --ultra -22": (*zstd(22), 0),
        "brotli 11": (lambda data: brotli.compress(data, mode=brotli.MODE_TEXT, quality=11), brotli.decompress, 0),
        "zstd -19, trained dictionary": (*zstd(19, dict_data=dictionary), len(dictionary.as_bytes())),
        "zstd -22 after the training text": (after_it, and_back, sum(map(len, training))),
    }


# %% [markdown]
# - Each rival, timed; what it reads once, such as a dictionary, is read before the clock starts.


# %%
def row_of(domain: str, original: int, compressed: int, encode: float, decode: float, **who) -> dict:
    """One measurement; kB are 1,000 bytes of the uncompressed text, both times in seconds."""
    sizes = {"original_bytes": original, "compressed_bytes": compressed, "bits_per_byte": 8 * compressed / original}
    rates = {"encode_kb_per_s": original / 1_000 / encode, "decode_kb_per_s": original / 1_000 / max(decode, 1e-3)}
    return {"domain": domain, **who, "documents": len(texts()[domain]), **sizes, **rates}


def rival_rows(name: str, domain: str) -> list[dict]:
    encode, decode, shared = rivals()[name]
    decode(encode(b"the clock starts when a dictionary has been read"))
    rows = []
    for packaging, pieces in (("together", [b"".join(texts()[domain])]), ("each", texts()[domain])):
        began = time.perf_counter()
        packed = [encode(piece) for piece in pieces]
        middle = time.perf_counter()
        same = [decode(p) for p in packed] == pieces
        seconds = middle - began, time.perf_counter() - middle
        who = {"compressor": name, "stage": "none", "seed": 0, "packaging": packaging, "round_trip": same}
        rows.append(row_of(domain, sum(map(len, pieces)), sum(map(len, packed)), *seconds, **who, shared_bytes=shared))
    return rows


# %% [markdown]
# - Every archive is decoded by `python -m lib decompress` in another process and compared byte for byte.


# %%
def shell(folder: str, *arguments: str) -> list[str]:
    """What `python -m lib ...` said, in a process of its own with `folder` as its current one."""
    environment = {**os.environ, "PYTHONPATH": str(profile.ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "lib", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    return (done.stderr if done.returncode else done.stdout).strip().splitlines()


def inside(packed: bytes, bits: np.ndarray) -> dict:
    """What an archive is made of; `bits` is each document's -sum log2 p."""
    archive = compress.unpacked(packed)
    header = compress.packed(replace(archive, tokens=[], beside={}, coded=[]))
    sizes = {"ideal_bytes": bits.sum() / 8, "tokens": sum(archive.tokens), "header_bytes": len(header)}
    return sizes | {"escaped_bytes": sum(map(len, archive.beside.values())), "document_bits": bits}


# %% [markdown]
# - One archive per domain, written here and decoded there: sizes, both times, and how many documents came back.


# %%
def archived(codec: compress.Codec, stage: str, seed: int) -> list[dict]:
    """A row per domain: an archive of all its documents, which do not see each other, decoded elsewhere."""
    rows, made, encoded = [], {}, {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for domain, documents in texts().items():
            began = time.perf_counter()
            made[domain] = compress.compress(codec, documents, f"{codec.name}, {domain}")
            encoded[domain] = time.perf_counter() - began
            Path(folder, f"{domain}.lmz").write_bytes(made[domain][0])
        said = shell(folder, "decompress", *(f"{domain}.lmz" for domain in made))
        decoded = [float(s) for s in re.findall(r"bytes in ([\d.]+) s: ", "\n".join(said))]
        for (domain, (packed, bits)), seconds in zip(made.items(), decoded, strict=True):
            files = [file.read_bytes() for file in sorted(Path(folder, domain).iterdir())]
            same = sum(a == b for a, b in zip(files, texts()[domain], strict=True))
            who = {"compressor": f"model {stage}", "stage": stage, "seed": seed, "packaging": "archive"}
            who |= {"round_trip": same == len(files), "identical_documents": same}
            who |= {"shared_bytes": 4 * sum(p.numel() for p in codec.model.parameters())}  # float32
            who |= inside(packed, bits)
            original = sum(map(len, texts()[domain]))
            rows.append(row_of(domain, original, len(packed), encoded[domain], seconds, **who))
    return rows


# %% [markdown]
# - Every compressor on every domain. "After" are the runs of notebook 02, all seeds.


# %%
@cache
def compressed() -> pd.DataFrame:
    rows = [row for domain in texts() for name in rivals() for row in rival_rows(name, domain)]
    rows += archived(codec, "before", 0)
    for seed in budget.seeds:
        run = train.finetune(base, tasks.load_task("debian"), "full", seed)
        rows += archived(compress.Codec(run.model, base.tokenizer, run.path.name, budget.batch), "after", seed)
    return pd.DataFrame(rows)


def by_document() -> list[dict]:
    """After against before, paired by document: -sum log2 p over bytes, headers apart, seeds averaged first."""
    out = []
    for domain, rows in compressed()[compressed()["stage"] != "none"].groupby("domain", sort=False):
        sizes = {"id": range(len(texts()[domain])), "bytes": list(map(len, texts()[domain]))}
        frames = {"before": [], "after": []}
        for row in rows.itertuples():
            frames[row.stage].append(pd.DataFrame({**sizes, "bits": row.document_bits}))
        found = paired(frames["before"], frames["after"], numerator="bits")
        out.append({"domain": domain, "seeds": len(frames["after"]), **found})
    return out


compression = results.table("compression", lambda: compressed().drop(columns="document_bits"))
pairs = results.table("compression_by_document", by_document)

# %% [markdown]
# ## The result
#
# - `archive`: the model's file, with where each document ends, a checksum, and a header that names model and machine:
#   seventy to ninety bytes that weigh on short texts, and a run's name is longer than `base`. `together` has none.

# %%
keys = ["compressor", "packaging"]
bits = compression.pivot_table(index=keys, columns="domain", values="bits_per_byte", sort=False)
bits.round(3)

# %% [markdown]
# ## What it costs
#
# - Speed, and from how much text on the model's weights (float32, counted once) pay for themselves against the
#   domain's smallest rival: weights + text * model's rate = dictionary + text * rival's rate.


# %%
def break_even() -> list[dict]:
    out = []
    for row in compression[compression["stage"] != "none"].itertuples():
        others = compression[(compression["domain"] == row.domain) & (compression["stage"] == "none")]
        rival = others.loc[others["bits_per_byte"].idxmin()]
        saved = rival["bits_per_byte"] - row.bits_per_byte
        needed = 8 * (row.shared_bytes - rival["shared_bytes"]) / saved if saved > 0 else np.inf
        who = {"domain": row.domain, "compressor": row.compressor, "seed": row.seed, "rival": rival["compressor"]}
        out.append(who | {"model_bytes": row.shared_bytes, "saved_bits_per_byte": saved, "megabytes": needed / 1e6})
    return out


one_file = compression[compression["packaging"] != "each"]
display(one_file.groupby("compressor", sort=False)[["encode_kb_per_s", "decode_kb_per_s"]].mean().round(2))
needed = results.table("break_even", break_even)
needed = needed.assign(megabytes=needed["megabytes"].astype(float).fillna(np.inf))  # JSON has no infinity
needed.groupby(["domain", "compressor", "rival"], sort=False)[["saved_bits_per_byte", "megabytes"]].mean()

# %% [markdown]
# ## One file, from the shell
#
# - A single short document pays for the header. A run that measures prints how a copy damaged in one bit is refused.


# %%
def single_file() -> list[dict]:
    note = min(texts()["debian"], key=len)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        packed, damaged = Path(folder, "note.txt.lmz"), Path(folder, "damaged.lmz")
        Path(folder, "note.txt").write_bytes(note)
        print(shell(folder, "compress", "note.txt")[-1])
        data = packed.read_bytes()
        damaged.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        for name in (packed.name, damaged.name):
            print(shell(folder, "decompress", name, "-o", f"{name}.out")[-1])
        same = Path(folder, "note.txt.lmz.out").read_bytes() == note
        print(f"Identical: {same}. Written from the damaged file: {Path(folder, 'damaged.lmz.out').exists()}.")
    sizes = {name: len(encode(note)) for name, (encode, _, _) in rivals().items()} | {"model before": len(data)}
    return [{"compressor": n, "original_bytes": len(note), "compressed_bytes": size} for n, size in sizes.items()]


results.table("one_file", single_file)

# %% [markdown]
# ## A file that everybody knows, and a coder that adapts
#
# The model was trained once and meets a new text; a coder may learn on the way, from what both sides have decoded.
# With $l_w$ the model's logits, and $c_k(w)$ how often $w$ came after the last $k$ tokens so far ($k = 1, 2$):
#
# $$p(w) \propto \exp\Big(a\, l_w + b_w + \sum_k u_{k,\,\text{share}(c_k(w))}\Big)$$
#
# - $a$, $b$ and $u$ follow the gradient of $-\log_2 p$ after each token. The model's weights stay.
# - A file is cut into streams, coded side by side: where one begins its context is empty, which costs bits, and a step
#   serves them all, which is where the speed comes from. The n-gram's counts are of all streams.
# - The files: `alice29.txt` of the Canterbury corpus (Arnold and Bell 1997), known to everybody, so to the model too,
#   and the beginning of one file of the release notes of 2026, which it can't know.

# %%
display(plots.source(compress.Mixer))
ALICE = "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"


@cache
def files() -> dict[str, bytes]:
    """What is at hand of the two, cut to the budget."""
    found = [path for place in hub.places("canterbury") if (path := place / "alice29.txt").is_file()]
    out = {"alice": found[0].read_bytes()} if found else {}
    if found and hashlib.sha256(out["alice"]).hexdigest() != ALICE:
        raise ValueError(f"{found[0]} is not the corpus's alice29.txt: its SHA-256 differs.")
    if not found:
        print("Skipped: alice29.txt is not in the folder canterbury of DATA_MIRROR or of data/mirror.")
    out["notes"] = "\n\n".join(row["text"] for row in release_notes()).encode()
    size = {"alice": budget.alice_bytes, "notes": budget.notes_bytes}
    # no part of a character at the end
    return {name: data[: size[name]].decode("utf-8", "ignore").encode() for name, data in out.items()}


# %% [markdown]
# - Written as `python -m lib compress` does it; `ideal_bytes` is $-\sum \log_2 p$, before coder and container.


# %%
window = min(budget.window, base.model.config.max_position_embeddings)
adaptive = replace(codec, window=window, dtype=profile.autocast_dtype())
KEPT = profile.output_root() / "data" / "runs" / "files"


def place(name: str, mix: bool, cuts: int) -> Path:
    return KEPT / f"{name}{'-mixed' * mix}-{cuts}"


def coded(name: str, mix: bool, cuts: int) -> dict:
    """One file as an archive; both it and the measurement are kept."""
    key = [base.name, name, len(files()[name]), mix, cuts, adaptive.window, str(adaptive.dtype)]
    return kept(place(name, mix, cuts), key, partial(measured, name, mix, cuts))


def measured(name: str, mix: bool, cuts: int) -> dict:
    began = time.perf_counter()
    packed, bits = compress.compress(replace(adaptive, mix=mix, batch=cuts, cuts=cuts), [files()[name]], name)
    seconds = time.perf_counter() - began
    write_bytes(place(name, mix, cuts).with_suffix(".lmz"), packed)
    row = {"file": name, "compressor": "model and n-gram" if mix else "model", "original_bytes": len(files()[name])}
    row["compressor"] += f", {cuts} streams" * (cuts != budget.cuts)
    row |= {"compressed_bytes": len(packed), "ideal_bytes": bits.sum() / 8, "seconds": seconds}
    return row | {"threads": torch.get_num_threads()}


# %% [markdown]
# - An archive is decoded in another process. That takes as long again: the shipped results have it for the mixed ones.
# - The rivals on the same files, in the same minutes: those that need no text beside the file.


# %%
def back(name: str, mix: bool, cuts: int) -> dict:
    packed, out = (place(name, mix, cuts).with_suffix(end) for end in (".lmz", ".out"))
    out.unlink(missing_ok=True)
    if profile.name() == "fast":  # its start takes longer than all else
        compress.decompress_file(packed, out, None)
    else:
        print(shell(".", "decompress", str(packed), "-o", str(out))[-1])
    return {"file": name, "mix": mix, "same": out.exists() and out.read_bytes() == files()[name]}


def rival_files() -> list[dict]:
    rows = []
    for name, data in files().items():
        for rival in ("gzip -9", "xz -9e", "zstd --ultra -22", "brotli 11"):
            encode, decode, _ = rivals()[rival]
            began = time.perf_counter()
            packed = encode(data)
            seconds = time.perf_counter() - began
            assert decode(packed) == data
            sizes = {"original_bytes": len(data), "compressed_bytes": len(packed), "seconds": seconds}
            rows.append({"file": name, "compressor": rival, **sizes})
    return rows


# %% [markdown]
# - Encoded and decoded are tables of their own: decoding takes as long again.

# %%
both = product(("alice", "notes"), ("mixed", "plain"))
ARCHIVES = {f"{name}_{how}": (name, how == "mixed", budget.cuts) for name, how in both}
ARCHIVES |= {"alice_fewer": ("alice", True, budget.fewer_cuts)} if budget.fewer_cuts else {}
parts, returned = [results.table("file_rivals", rival_files)], []
for table_name, file in ARCHIVES.items():
    for measure, tables, end in ((coded, parts, ""), (back, returned, "_back")):
        make = partial(lambda measure, *file: [measure(*file)] if file[0] in files() else [], measure, *file)
        tables.append(results.table(table_name + end, make, optional=True))
whole, returned = pd.concat(parts, ignore_index=True), pd.concat(returned, ignore_index=True)
whole["bits_per_byte"] = 8 * whole["compressed_bytes"] / whole["original_bytes"]
display(whole, returned)

# %% [markdown]
# ## What we saw
#
# - Data to text: BLEU and slot errors, fine-tuned against the way to prompt that is best by the same measure. Trainings
#   and draws of examples are not paired, so a difference has Welch's interval.


# %%
def best_of_each(measure: str, sign: int) -> tuple[str, pd.Series, pd.Series]:
    """The best fine-tuned system's name and values over its runs, and those of the best prompt by the same measure."""
    ours = table[table["kind"] == "ours"].groupby("system", sort=False)[measure]
    by_mean = (sign * ours.mean()).sort_values()
    prompted = by_mean.index.str.contains("-shot")
    tuned, few = by_mean.index[~prompted][-1], by_mean.index[prompted][-1]
    print(f"{measure}: {tuned} {ours.mean()[tuned]:.3f}, {few} {ours.mean()[few]:.3f}")
    return tuned, ours.get_group(tuned), ours.get_group(few)


# %% [markdown]
# - Welch's test for either, corrected for the two (Holm).

# %%
gaps, levels, p = {}, {}, {}
if has_e2e:
    for measure, sign in (("bleu", 1), ("ser", -1)):
        tuned, *both = best_of_each(measure, sign)
        both = [x.astype(float) * (100 if measure == "ser" else 1) for x in both]
        (low, high), p[measure], levels[measure] = (math.nan, math.nan), math.nan, [x.mean() for x in both]
        if min(map(len, both)) > 1 and max(x.nunique() for x in both) > 1:
            test = stats.ttest_ind(*both, equal_var=False)
            (low, high), p[measure] = test.confidence_interval(0.95), test.pvalue
        gaps[measure] = span(levels[measure][0] - levels[measure][1], low, high, 1, sign=True)
    if not any(map(math.isnan, p.values())):
        p = dict(zip(p, multipletests([*p.values()], method="holm")[1], strict=True))
    people = 100 * table.loc[table["kind"] == "human", "ser"].iloc[0]
    by_facts = by_slots[by_slots["system"] == tuned].groupby("slots")[["ser", "texts"]].mean()
    for measure, gap in gaps.items():
        print(f"{measure}, fine-tuned less prompted: {gap}, p {p[measure]:.3f} by Holm")
    print(f"Slot errors of people: {people:.1f} %.")
    display(by_facts.round(3))
else:
    print("E2E was not within reach: no statement.")

# %% [markdown]
# - Compression, per domain: bits per byte of the files; after less before without the headers, which a run's name makes
#   longer, once in real bytes and once, paired by document, as an ideal code length. Fine-tuning is called smaller or
#   larger where the documents' interval excludes 0 and the seeds' interval (headers apart) the value before.

# %%
models, others = (compression[compression["stage"].eq("none") == plain] for plain in (False, True))
saw = {}
for pair in pairs.itertuples():
    own = models[models["domain"] == pair.domain].set_index("stage")
    header = 8 * own["header_bytes"] / own["original_bytes"]
    before, after = (own["bits_per_byte"][[stage]] for stage in ("before", "after"))
    bar = before.iloc[0] - header["before"]
    _, lowest, highest = mean_interval(after - header[["after"]])
    one_seed = bool(np.isnan(lowest))
    rival = others.loc[others.loc[others["domain"] == pair.domain, "bits_per_byte"].idxmin()]
    mine = needed[(needed["domain"] == pair.domain) & (needed["compressor"] == "model after")]
    saw[pair.domain] = {
        "before": number(before.iloc[0]),
        "after": interval(after),
        "header.before": number(header["before"]),
        "header.after": number(header[["after"]].mean()),
        "real": number((after - header[["after"]]).mean() - bar, sign=True),
        "paired": span(pair.difference, pair.low, pair.high, sign=True),
        "smaller": pair.high < 0 and (one_seed or highest < bar),
        "larger": pair.low > 0 and (one_seed or lowest > bar),
        "rival": number(rival["bits_per_byte"]),
        "beaten": after.mean() < rival["bits_per_byte"],
        "gigabytes": number(mine["megabytes"].mean() / 1_000, 0) if np.isfinite(mine["megabytes"]).all() else "-",
    }
pd.DataFrame(saw)

# %% [markdown]
# - Over all archives: what came back (a document counts once, and only if it did from every model's archive), what
#   coder and container add to the cross-entropy, and how slow it is.

# %%
added = models["compressed_bytes"] / models["ideal_bytes"] - 1
came_back, sent = models.groupby("domain")[["identical_documents", "documents"]].min().sum().astype(int)
size = models["original_bytes"]
rate = size.sum() / (size / models["encode_kb_per_s"]).sum()
print(f"{came_back} of {sent} documents came back from the archives of {len(models) // len(saw)} models each.")
print(f"Coder and container add {added.min():.1%} to {added.max():.1%}; {rate:.2f} kB/s to encode.")

# %% [markdown]
# ## What it does not show
#
# - E2E: two forms of prompt and greedy decoding; another wording or beam search could help few-shot.
#   Our rows are means over a part of the test inputs and of another base model where GPT-2 was not within reach;
#   our ROUGE-L is not coco-caption's. The slot check is by rules, and people do not score 0 on it. The published rows
#   had other budgets and beam search: no distance to them is told.
# - Compression: a few documents of three kinds, short ones, and two files. Of `alice29.txt` others report 1.63 bits per
#   byte (CMIX) and 0.918 (SmolLM2-135M with mixing, one stream; Tacconelli 2026); ours begins anew in each stream. The
#   seconds are of a shared machine. Dedicated compressors (PPM, context mixing such as CMIX, with no pretrained
#   weights to ship) were not run here. The mixture's rates (0.001, 0.3, 0.02) and its cells were chosen on
#   `alice29.txt`, where its gain is therefore flattered; not on the release notes.
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
#   `ts_zip`. Brotli: RFC 7932; Zstandard: RFC 8878. Mixing with weights that are learned on the way: PAQ, Mahoney
#   2005; with SmolLM2-135M, an n-gram and a bias that adapts: Nacrith, Tacconelli 2026, arXiv:2602.19626.

# %% [markdown]
# ## For the report
#
# - E2E: BLEU and slot errors, those of the fewest and of the most facts too.

# %%
told = dict.fromkeys(["bleu.gap", "ser.gap", "fewest", "fewest.errors", "most", "most.errors"], "not measured")
if has_e2e:
    told |= {f"{measure}.gap": gap for measure, gap in gaps.items()}
    for name, row in (("fewest", by_facts.iloc[0]), ("most", by_facts.iloc[-1])):
        told |= {name: row.name, f"{name}.errors": number(100 * row["ser"], 1)}
for name, found in told.items():
    results.value(f"e2e.{name}", found)
more = has_e2e and p["bleu"] < 0.05 and levels["bleu"][0] > levels["bleu"][1]
results.claim("fine-tuning has more BLEU than the best prompt", more)
results.claim("fewer slot errors than by the best prompt are not shown", has_e2e and p["ser"] >= 0.05)
results.claim("errors per slot rise with the facts", has_e2e and by_facts["ser"].iloc[-1] > by_facts["ser"].iloc[0])
if has_e2e:
    rows, digits = [], {"bleu": 1, "nist": 2, "rouge_l": 3, "ser": 3}
    for system, part in table[table["kind"].isin(["ours", "human"])].groupby("system", sort=False):
        cells = [number(part[c].astype(float).mean(), d) for c, d in digits.items()]
        rows.append([system.replace("-shot", " example" if system[0] == "1" else " examples"), len(part), *cells])
    header = ["system", "runs", "BLEU", "NIST", "ROUGE-L", "slot errors"]
    text = f"E2E NLG on {budget.e2e_inputs} test inputs, greedy; means over the runs, fine-tuned on"
    results.markdown("text", header, rows, f"{text} {budget.e2e_tokens:,} tokens.")
else:
    results.block("text", "E2E NLG was not within reach of the machine, so this half was not measured.")

# %% [markdown]
# - Compression: all archives, then each domain, equal bits, and the claims.

# %%
results.value("seeds", len(budget.seeds))
results.value("documents", sent)
results.value("added", f"{100 * added.min():.1f} to {100 * added.max():.1f} %")
for domain, found in saw.items():
    for name in ("before", "after", "header.before", "header.after", "real", "paired", "rival", "gigabytes"):
        results.value(f"{domain}.{name}", found[name])
for row, name in zip(identity.itertuples(), ("again", "half", "threads", "one_pass"), strict=True):
    results.value(f"identical.{name}", f"{row.identical:.0%}")
results.claim("every document came back", came_back == sent and bool(others["round_trip"].all()))
results.claim("debian takes fewer bits", saw["debian"]["smaller"])
results.claim("release notes take more bits", saw["release_notes"]["larger"])
results.claim("tang takes fewer bits", saw["tang"]["smaller"])
results.claim("no rival is smaller than the fine-tuned model", all(found["beaten"] for found in saw.values()))
results.claim("computed the same way, the numbers are the same", identity["identical"].iloc[0] == 1)
results.claim("computed otherwise, they are not", bool((identity["identical"].iloc[1:] < 1).all()))

# %% [markdown]
# - The files: one row per compressor. The mark, in bits per byte of a written archive, was set before measuring.

# %%
FILE_MARK = 1.05
results.value("file.mark", FILE_MARK)
sizes = whole.pivot_table(index="compressor", columns="file", values="bits_per_byte", sort=False)
sizes = sizes.reindex(columns=["alice", "notes"])
rows = [[name, *map(number, row)] for name, row in sizes.iterrows()]
length = {name: f"{size:,} bytes" for name, size in whole.groupby("file")["original_bytes"].first().items()}
text = f"Bits per byte of two files, header and all, in 16 bits and up to {budget.cuts} streams with up to "
text += f"{adaptive.window:,} tokens of context: `alice29.txt` ({length.get('alice', 'not at hand')}), which models "
text += f"know, and release notes of 2026 ({length['notes']}), which none can."
results.markdown("files", ["compressor", "alice29.txt", "release notes"], rows, text, seeds=())
for name, gain in sizes.reindex(["model", "model and n-gram"]).diff().iloc[1].items():
    results.value(f"file.{name}.gain", number(gain, sign=True))
    results.claim(f"mixing makes {name} smaller", gain < 0)
results.claim("the files came back", len(returned) > 0 and bool(returned["same"].all()))
ours = whole[whole["compressor"].str.startswith("model")]
rate = ours["original_bytes"] / ours["seconds"] / 1_000
results.value("file.rate", f"{rate.min():.2f} to {rate.max():.2f}")
results.claim("coding stays below half a kilobyte a second", rate.max() < 0.5)
first = sizes["alice"].get("model and n-gram", math.nan)
results.claim("the well-known file misses its mark in many streams", first > FILE_MARK)
results.claim("in fewer streams it meets its mark", sizes["alice"].min() <= FILE_MARK < first)
results.value("file.cuts", budget.cuts)
results.value("file.fewer", budget.fewer_cuts)

# %% [markdown]
# - The table; then everything is written.

# %%
runs = compression.groupby(keys)["seed"].nunique()
rows = [[*key, runs[key], *map(number, line[[*saw]])] for key, line in bits.iterrows()]
text = "Compressed bits per byte in real bytes, headers and all, by domain; plain text is 8; mean over seeds."
results.markdown("compression", ["compressor", "packaging", "seeds", *saw], rows, text, left=2)
notes = (profile.DATA / "release_notes" / "documents.jsonl").read_bytes()
data = {name: tasks.load_task(name).sha256 for name in ("debian", "tang")}
data |= {"release_notes": hashlib.sha256(notes).hexdigest()} | ({"e2e": task.sha256} if task else {})
results.save(data=data)
