"""Numbers in the answers of report.md's appendix B."""

from lib.report.report_blocks import Notebook, value
from lib.report.report_evaluation import worse_than_before
from lib.report.report_forms import seeds
from lib.report.report_model import MEASURED, TRAINED, main_task


@value("answer.repetition", MEASURED)
def repetition(n: Notebook) -> str:
    df = n["diversity"].query("task == @task and stage == 'before'", local_dict={"task": main_task(n)})
    share = df.groupby("decoding")["rep_4"].mean()
    return (
        f"Before fine-tuning {n.model} repeats {share['greedy']:.0%} of its 4-grams under greedy decoding and "
        f"{share['sample']:.0%} under sampling."
    )


@value("answer.lora", TRAINED)
def lora(n: Notebook) -> str:
    df = n["runs"].query("method == 'lora'")
    own, whole = int(df["trainable_parameters"].iloc[0]), int(df["base_parameters"].iloc[0])
    return f"For {n.model} these are {own:,} trained parameters, {own / whole:.1%} of {whole:,}."


@value("answer.difference", MEASURED)
def difference(n: Notebook) -> str:
    df = n["significance"]
    row = df[(df["task"] == main_task(n)) & (df["method"] == "full") & (df["measure"] == "bits_per_byte")].iloc[0]
    sure = "does not include 0" if row["low"] * row["high"] > 0 else "includes 0"
    return (
        f"Full fine-tuning of {n.model} moves bits per byte by {row['difference']:+.3f} [{row['low']:+.3f}, "
        f"{row['high']:+.3f}] on {int(row['documents'])} documents and {seeds(int(row['seeds']))}, an interval "
        f"that {sure}."
    )


@value("answer.copied", MEASURED)
def copied(n: Notebook) -> str:
    df = n["before_after"]
    df = df[df["task"] == main_task(n)]
    before, after = (df[df["stage"] == s]["overlap_words_max"].max() for s in ("before", "after"))
    return (
        f"The longest run of words shared with a training target is {int(after)} after fine-tuning and "
        f"{int(before)} before, "
        f"and {df['copied_share'].max():.0%} of the outputs are a training target word for word."
    )


@value("answer.forgotten", MEASURED)
def forgotten(n: Notebook) -> str:
    if n["forgetting"].empty:
        return "The texts for it were not within reach, so this was not measured."
    worse, count = worse_than_before(n)
    return f"Of {count} comparisons on general text {len(worse)} came out worse than before ({n.model})."


@value("answer.model", MEASURED)
def model(n: Notebook) -> str:
    end = "; with GPT-2 within reach, the same commands measure GPT-2" if n.stand_in else ""
    return f"those of section 5 are of {n.model}{end}."


@value("answer.bleu", MEASURED)
def bleu(n: Notebook) -> str:
    df = n["before_after"].query("stage == 'after' and method == 'full'").groupby("task", sort=False)["bleu"].mean()
    return f"After full fine-tuning BLEU is {' and '.join(f'{x:.1f} on {task}' for task, x in df.items())}."
