"""Blocks of report.md, section 4: the datasets (notebook 02, the datasets' cards)."""

from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import quoted, table
from lib.report.report_model import MEASURED, TRAINED, main_task


@block("data.statistics", TRAINED)
def statistics(n: Notebook) -> str:
    df = n["statistics"]
    rows = [
        [
            r.split,
            f"{r.documents:,}",
            f"{r.groups:,}",
            f"{r.bytes:,}",
            f"{r.tokens:,}",
            f"{r.target_tokens:,}",
            f"{r.median_tokens:.0f}",
            f"{r.bytes_per_token:.2f}",
        ]
        for r in df.itertuples()
    ]
    header = ["split", "documents", "groups", "bytes", "tokens", "of targets", "median", "bytes per token"]
    return (
        f"{table(header, rows)}\n\nTable: The task {df['task'].iloc[0]}, prompts and targets together but for "
        "the column "
        f"“of targets”; tokens are those of {n.model}, the median is tokens per document."
    )


@block("data.stages", "data/debian/card.json")
def stages(card: dict) -> str:
    rows = [[name, f"{count:,}"] for name, count in card["stages"].items()]
    caption = f"Table: Packages left after each stage, Debian {card['release']['version']} “{card['suite']}”, main."
    return f"{table(['stage', 'packages'], rows)}\n\n{caption}"


@block("data.example", MEASURED)
def example(n: Notebook) -> str:
    df = n["samples"]
    row = df[df["task"] == main_task(n)].iloc[-1]
    return quoted(row["prompt"] + row["human"], 20)


@value("data.bias", "data/debian/card.json")
def bias(card: dict) -> str:
    total = sum(card["splits"].values())
    share = card["sections"]["perl"] / total
    return f"{share:.0%} of the {total:,} documents are Perl modules, described by one team in a similar voice"


@block("data.others", "data/tang/card.json", "data/idioms/card.json", "data/release_notes/card.json")
def others(tang: dict, idioms: dict, notes: dict) -> str:
    rows = [
        ["`tang`", "title to Tang quatrain, simplified characters", *_splits(tang), "6.1, 6.4"],
        ["`idioms`", "four-character idiom to its explanation", *_splits(idioms), "6.4"],
        ["`release_notes`", "releases of Python packages of 2026", "-", "-", f"{notes['documents']:,}", "6.7"],
    ]
    header = ["dataset", "what", "train", "validation", "test", "section"]
    return f"{table(header, rows, 2)}\n\nTable: The other shipped datasets, in documents."


def _splits(card: dict) -> list[str]:
    return [f"{card['splits'][s]:,}" for s in ("train", "validation", "test")]
