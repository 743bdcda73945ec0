"""Blocks of report.md: the abstract, the model (notebook 01) and the data (notebook 02, the datasets' cards)."""

from lib import models
from lib.models import GPT2_PARAMETERS
from lib.report.report_blocks import GPT2, NOTEBOOKS, Files, Notebook, block, value
from lib.report.report_forms import interval, listed, seeds, table, tiny

FIRST, TRAINED, MEASURED = "01_load_and_generate", "02_finetune", "03_evaluate"


# --- abstract


RECOVERY = (
    " This stand-in is tuned to follow instructions, and its weights were expanded from four bits: part of what "
    "fine-tuning gains may be recovery from either, which we did not separate (section 7)."
)


@value("abstract.base", MEASURED)
def abstract_base(n: Notebook) -> str:
    size = f"{n.provenance['parameters']:,} parameters"
    if n.stand_in:
        return (
            f"The assignment's model is {GPT2}. Its weights were not within reach of the machine that made "
            "these numbers, "
            f"so they are those of {n.model} ({size}), and every table says so; where {GPT2} is within reach, the "
            f"same commands measure it.{RECOVERY if models.STAND_IN in n.model else ''}"
        )
    return f"The base model is {n.model} ({size})."


@value("limits.model", MEASURED)
def limits_model(n: Notebook) -> str:
    """What a stand-in's numbers can't say; of the one that lib.stand_in fetches, how it was made."""
    if not n.stand_in:
        return ""
    said = (
        "A stand-in's number is never GPT-2's, and what a model of another design and other pretraining shows need "
        "not hold for GPT-2."
    )
    if models.STAND_IN in n.model:
        said += (
            " This one is tuned to follow instructions, and its weights were quantised to four bits and expanded "
            "again. Part of what fine-tuning gains on it, and of general text getting better, may be recovery from "
            "either; we did not separate them."
        )
    return said


@value("sources.model", MEASURED)
def sources_model(n: Notebook) -> str:
    if not n.stand_in or models.STAND_IN not in n.model:
        return "no other model's were used."
    package = models.STAND_IN_PIN.replace("==", " ")
    return (
        f"the stand-in {models.STAND_IN}, Allal et al. 2025, arXiv:2502.02737, from the PyPI package {package}. "
        "Taken where GPT-2 was not within reach."
    )


@value("abstract.result", MEASURED)
def abstract_result(n: Notebook) -> str:
    df = n["before_after"]
    df = df[df["task"] == main_task(n)]
    before = df[df["stage"] == "before"]["bits_per_byte"].iloc[0]
    tests = n["significance"]
    tests = tests[(tests["task"] == main_task(n)) & (tests["measure"] == "bits_per_byte")]
    said = []
    for row in tests.itertuples():
        after = df[df["method"] == row.method]["bits_per_byte"]
        verdict = "excludes 0" if row.low * row.high > 0 else "includes 0, so no difference is shown"
        said.append(
            f"{interval(after)} with {METHODS.get(row.method, row.method)} (paired by document {row.difference:+.3f} "
            f"[{row.low:+.3f}, {row.high:+.3f}], which {verdict})"
        )
    return (
        f"On {int(df['documents'].iloc[0])} held-out documents the base model needs {before:.3f} bits per byte; after "
        f"{n.budget.train_tokens:,} training tokens it needs {listed(said)}, means of "
        f"{seeds(int(tests['seeds'].max()))}."
    )


METHODS = {"full": "full fine-tuning", "lora": "LoRA", "last_blocks": "the last blocks alone"}


def main_task(n: Notebook) -> str:
    """The task of the notebook's default run: E2E runs beside it."""
    return next(t for t in n["before_after"]["task"] if t != "e2e")


def provenance_table(files: Files) -> str:
    """Which notebook was run with which model and on what, and which was not run."""
    rows = []
    for name in NOTEBOOKS:
        n = files[name]
        if n is None:
            rows.append([name[:2], "not run", "", "", "", ""])
            continue
        p = n.provenance
        model = (n.model if p["base_model"] else "none").removeprefix("the ")
        machine, used = p["device"].removeprefix("CPU, "), ", ".join(map(str, p["seeds"])) or "-"
        rows.append([name[:2], model, p["profile"], used, machine, p["created"][:10]])
    return table(["notebook", "base model", "profile", "seeds", "machine", "date"], rows, 6)


# --- 2 The model


@block("model.picture", FIRST)
def picture(n: Notebook) -> str:
    return n.figure("01_structure")


@block("model.parameters", FIRST)
def parameters(n: Notebook) -> str:
    df = n["parameters"]
    rows = [
        [r.component, r.formula, f"{r.parameters:,}", f"{r.share:.2%}"] for r in df[df["model"] == GPT2].itertuples()
    ]
    caption = f"Table: Parameters of {GPT2}, by component, from its configuration."
    return f"{table(['component', 'formula', 'parameters', 'share'], rows, 2)}\n\n{caption}"


@value("model.verified", FIRST)
def verified(n: Notebook) -> str:
    f = n["forward"].iloc[0]
    weights = "random weights" if n.stand_in else "the loaded weights"
    size = f"a GPT-2 of {int(f['parameters']):,} parameters" if f["parameters"] != GPT2_PARAMETERS else GPT2
    return (
        f"On {size} with {weights} the largest difference of a logit is {tiny(f['largest_difference'])}, and "
        "new tokens "
        f"at later places move the logits of earlier ones by {tiny(f['future_leak'])}"
    )


@block("model.differences", FIRST)
def differences(n: Notebook) -> str:
    df = n["differences"]
    if not df["differs"].any():
        return f"The loaded model is {GPT2} itself: the description above holds for it in every point."
    rows = [[r.feature, r.gpt2_117m, r.loaded, "yes" if r.differs else ""] for r in df.itertuples()]
    head = (
        f"The numbers of this report are of {n.model}. It is a decoder-only transformer as well; "
        f"{int(df['differs'].sum())} of the {len(df)} features below differ from {GPT2}. Where position, norm or MLP "
        "differ, the formulas above are GPT-2's alone; the causal mask, the residual stream and the training goal are "
        "the same."
    )
    shape = table(["feature", GPT2, "loaded model", "differs"], rows, 4)
    return f"{head}\n\n{shape}\n\nTable: {GPT2} and {n.model}."


@block("tokens.table", FIRST)
def tokens(n: Notebook) -> str:
    rows = [
        [r.text, str(r.characters), str(r.bytes), str(r.tokens), str(r.broken), f"{r.bytes_per_token:.2f}"]
        for r in n["tokens"].itertuples()
    ]
    header = ["text", "characters", "bytes", "tokens", "not UTF-8 alone", "bytes per token"]
    return f"{table(header, rows)}\n\nTable: Three short texts under the tokenizer of {n.model}."


@block("tokens.figure", FIRST)
def tokens_figure(n: Notebook) -> str:
    return n.figure("01_tokens")


@value("decoding.example", FIRST)
def decoding(n: Notebook) -> str:
    df = n["next_token"].pivot_table(index="token", columns="setting", values="probability", sort=False)
    best = df["temperature 1.0"].drop("all other tokens").idxmax()
    beams = n["beams"]
    last = beams[beams["step"] == beams["step"].max()].sort_values("score", ascending=False)
    return (
        f"After “{n['next_token']['prompt'].iloc[0]}” {n.model} gives “{best.strip()}” "
        f"{df.loc[best, 'temperature 1.0']:.1%}; "
        f"temperature 0.7 makes that {df.loc[best, 'temperature 0.7']:.1%}, temperature 1.3 "
        f"{df.loc[best, 'temperature 1.3']:.1%}, "
        f"top-k 5 {df.loc[best, 'top-k 5']:.1%} and top-p 0.9 {df.loc[best, 'top-p 0.9']:.1%}; "
        f"three beams end, after {len(beams['step'].unique())} steps, with “{last['text'].iloc[0].strip()}”"
    )


@block("decoding.figure", FIRST)
def decoding_figure(n: Notebook) -> str:
    return n.figure("01_next_token")


@value("padding.example", FIRST)
def padding(n: Notebook) -> str:
    df = n["padding"].set_index("way")["largest_difference"]
    good, no_mask = df.iloc[0], df["left, no mask"]
    right = df["right, mask, logits of the last column"]
    return (
        f"In a batch with left padding and its mask the logits of {n.model} move by {tiny(good)} at most; "
        "without the mask "
        f"by {no_mask:.1f}, and read from the last column of a right-padded batch by {right:.1f}"
    )


@value("heads.example", FIRST)
def heads(n: Notebook) -> str:
    df = n["heads"].set_index("pattern")
    previous, first = df.loc["previous"], df.loc["first"]
    return (
        f"In {n.model}, block {int(previous['layer'])}, head {int(previous['head'])} gives "
        f"{previous['value']:.0%} of its "
        f"attention to the token before ({previous['elsewhere']:.0%} on a second sentence, where the head was not "
        f"chosen), and the mean head gives {first['mean']:.0%} to the first token"
    )


@block("heads.figure", FIRST)
def heads_figure(n: Notebook) -> str:
    return n.figure("01_attention")


@value("gpt2.size", FIRST)
def gpt2_size(n: Notebook) -> str:
    df = n["parameters"]
    return f"{int(df[(df['model'] == GPT2) & (df['component'] == 'total')]['parameters'].iloc[0]):,}"


@value("gpt2.shares", FIRST)
def gpt2_shares(n: Notebook) -> str:
    share = n["parameters"].query("model == @GPT2").set_index("component")["share"]
    attention = share[[c for c in share.index if c.startswith("attention")]].sum()
    mlp, words = share["MLP"], share["token embedding"]
    return f"The MLPs hold {mlp:.0%} of them, the token table {words:.0%}, attention {attention:.0%}"
