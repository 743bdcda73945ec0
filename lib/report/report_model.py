"""Blocks of report.md: the abstract."""

from lib import models
from lib.report.report_blocks import GPT2, NOTEBOOKS, Files, Notebook, value
from lib.report.report_forms import interval, listed, seeds, table

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
