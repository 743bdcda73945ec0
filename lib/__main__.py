"""The command line: `python -m lib --help` lists what there is."""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib", description="GPT-2 fine-tuning coursework")
    commands = parser.add_subparsers(dest="command", required=True)

    fetch = commands.add_parser("fetch", help="base model and outside data to local folders, for offline use")
    fetch.add_argument("what", nargs="*", help="model, e2e, wikitext2, lambada, blimp; all by default")

    run = commands.add_parser("run", help="execute notebooks; results, figures and outputs are kept")
    run.add_argument("notebooks", nargs="*", help="numbers or names, such as 01 02 03; all by default")

    train = commands.add_parser("finetune", help="one fine-tuning run; also under accelerate launch")
    train.add_argument("--task", help="debian, e2e or a .jsonl file; TASK or debian by default")
    train.add_argument("--method", default="full")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace a setting, such as --set learning_rate=5e-5",
    )

    bench = commands.add_parser(
        "bench", help="training, evaluation and generation against other libraries; the table of notebook 11"
    )
    bench.add_argument("what", nargs="*", help="training, evaluation, generation, ceiling; all by default")
    bench.add_argument("--runs", type=int, help="of each measurement; the profile's by default")

    for name, what in (
        ("compress", "a text file with the language model"),
        ("decompress", "what compress wrote; exact, or refused"),
    ):
        files = commands.add_parser(name, help=what)
        files.add_argument("file", type=Path, nargs="+" if name == "decompress" else None)
        files.add_argument("-o", "--out", type=Path, help="what to write; beside FILE by default")
        files.add_argument(
            "--run", help="a folder in data/runs; the base model by default, or what the compressed file names"
        )

    report = commands.add_parser("report", help="fill report.md in place from data/results")
    report.add_argument("--check", action="store_true", help="change nothing, say what is wrong")

    checked = commands.add_parser(
        "check", help="the assignment's rubric: where each point is satisfied, or what is missing"
    )
    exported = commands.add_parser(
        "export", help="the report as HTML, Word and PDF, the notebooks as HTML, into build/"
    )
    exported.add_argument("what", nargs="*", help="html, docx, pdf, notebooks; all by default")
    packed = commands.add_parser("pack", help="one zip to hand in, into build/")
    for command in (checked, exported, packed):
        command.add_argument("--midterm", action="store_true", help="README.md as the mid-term report")
    for command in (exported, packed):
        command.add_argument(
            "--draft",
            action="store_true",
            help="with a watermark" + (", in spite of gaps" if command is packed else ""),
        )

    commands.add_parser("colab", help="install what a Colab session lacks; its torch and numpy stay")

    chosen = parser.parse_args(arguments)
    try:
        return COMMANDS[chosen.command](chosen) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def run_fetch(chosen) -> int:
    from lib.hub import fetch

    return fetch(chosen.what)


def run_colab(chosen) -> None:
    from lib.colab import setup

    setup()


def run_notebooks(chosen) -> None:
    from lib import notebooks

    notebooks.run(chosen.notebooks)


def run_finetune(chosen) -> None:
    from lib.models import load_base
    from lib.tasks import load_task
    from lib.train import finetune, parse_overrides

    overrides = parse_overrides(chosen.set)
    result = finetune(load_base(), load_task(chosen.task), chosen.method, chosen.seed, **overrides)
    shown = ["steps", "tokens", "tokens_per_second", "seconds", "peak_megabytes", "held_out_loss"]
    for name in shown if os.environ.get("RANK", "0") == "0" else ():
        value = result.summary[name]
        print(f"{name:18} {value:,.4f}" if isinstance(value, float) else f"{name:18} {value:,}")


def run_bench(chosen) -> None:
    from lib.explore import bench

    kinds = chosen.what or bench.KINDS
    raw = bench.measure(kinds, chosen.runs)
    bench.keep(raw, kinds, chosen.runs)
    print(bench.shown(bench.tables(raw)))


def run_compress(chosen) -> None:
    from lib.explore.compress_files import BASE, compress_file

    compress_file(chosen.file, chosen.out, chosen.run or BASE)


def run_decompress(chosen) -> None:
    from lib.explore.compress_files import decompress_file

    if chosen.out and len(chosen.file) > 1:
        raise ValueError(f"-o names one place for {len(chosen.file)} files: leave it out.")
    for file in chosen.file:
        decompress_file(file, chosen.out, chosen.run)


def run_report(chosen) -> int:
    from lib.report import fill

    wrong = fill.check() if chosen.check else fill.fill()
    print(*(wrong or ["report.md and README.md agree with data/results."]), sep="\n")
    return int(bool(wrong))


def run_check(chosen) -> int:
    from lib.report import rubric

    answers = rubric.check(chosen.midterm)
    print(rubric.show(answers))
    return bool(rubric.gaps(answers))


def run_export(chosen) -> None:
    from lib.report.export import export

    export(chosen.what, chosen.midterm, chosen.draft)


def run_pack(chosen) -> None:
    from lib.report.pack import pack

    pack(chosen.midterm, chosen.draft)


COMMANDS = {
    "bench": run_bench,
    "colab": run_colab,
    "fetch": run_fetch,
    "run": run_notebooks,
    "finetune": run_finetune,
    "compress": run_compress,
    "decompress": run_decompress,
    "report": run_report,
    "check": run_check,
    "export": run_export,
    "pack": run_pack,
}

if __name__ == "__main__":
    sys.exit(main())
