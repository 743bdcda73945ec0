"""The command line: `python -m lib --help` lists what there is."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path


def finetune(method: str, seed: int, pairs: list[str], out: Path | None) -> None:
    from lib import models, results, tasks, train

    chosen, fields = {}, train.Settings.__dataclass_fields__
    for name, _, text in (pair.partition("=") for pair in pairs):
        if name in ("method", "seed"):
            raise ValueError(f"--set {name}={text}: use --{name} {text}.")
        if name not in fields:
            raise ValueError(f"Setting {name!r} is unknown; known: {', '.join(fields)}.")
        kind = fields[name].type
        if not text or (kind is bool and text.lower() not in ("true", "false")):
            such = f"{name}=true" if kind is bool else "learning_rate=5e-5"
            raise ValueError(f"--set {name}: give it a value, such as --set {such}.")
        chosen[name] = text.lower() == "true" if kind is bool else kind(text)
    base = models.load_base()
    run = train.finetune(base, tasks.load_task(None, base), method, seed, **chosen)
    if os.environ.get("RANK", "0") != "0":
        return
    for name in ("steps", "tokens", "tokens_per_second", "seconds", "peak_megabytes", "held_out_loss"):
        print(f"{name:18} {results.number(run.summary[name], 4 * isinstance(run.summary[name], float))}")
    if out:
        run.model.save_pretrained(out)
        base.tokenizer.save_pretrained(out)
    adapter = " (an adapter of peft; --out FOLDER writes whole weights)" * (method == "lora" and not out)
    print(f"{'weights':18} {out or run.path / 'model'}{adapter}")
    print(f"python -m lib generate --run {run.path.name} --prompt TEXT")


def bench(kinds: list[str]) -> None:
    from lib.explore import bench

    print(bench.summary(bench.compare(kinds or bench.SPEED)).round(2).to_string(index=False, na_rep=""))


def compress(files: list[Path], out: Path | None, run: str | None, back: bool = False) -> None:
    from lib.explore import compress

    if out and len(files) > 1:
        raise ValueError(f"-o names one place for {len(files)} files: leave it out.")
    for file in files:
        compress.decompress_file(file, out, run) if back else compress.compress_file(file, out, run or compress.BASE)


# commands of an exploration, which a team may have taken out
OPTIONAL = {"bench": "lib.explore.bench", "compress": "lib.explore.compress", "decompress": "lib.explore.compress"}
MANY, FLAG = {"nargs": "*"}, {"action": "store_true"}
MIDTERM = {"--midterm": FLAG | {"help": "README.md as the mid-term report"}}
DRAFT = {"--draft": FLAG | {"help": "with a watermark; pack: in spite of gaps"}}
MODEL = {  # settings of the environment as options: cmd and PowerShell take no NAME=value in front of a command
    "--profile": {"dest": "PROFILE", "help": "fast, cpu or full; full with a GPU and cpu without by default"},
    "--base-model": {"dest": "BASE_MODEL", "help": "a folder in transformers' format or a hub id"},
    "--mirror": {"dest": "HF_ENDPOINT", "help": "of the Hugging Face hub, such as https://hf-mirror.com"},
    "--data-mirror": {"dest": "DATA_MIRROR", "help": "a folder with the texts from outside, as data/mirror"},
    "--device": {"dest": "DEVICE", "help": "cpu, cuda or mps"},
    "--dtype": {"dest": "DTYPE", "help": "bfloat16, float16 or float32"},
}
TASK = {
    "--task": {"dest": "TASK", "help": "debian, e2e, a file or a hub id, see data/README.md; debian by default"},
    "--task-columns": {"dest": "TASK_COLUMNS", "help": "of your own rows, such as prompt=question,target=answer"},
}
RUN = {
    "notebooks": MANY,
    **(MODEL | TASK),
    "--private-data": {"dest": "PRIVATE_DATA", "help": "a folder of your own, for notebook 08"},
    "--results": {"dest": "RESULTS", "help": "stored: measure nothing; missing, or names of tables: those alone"},
}
FILES = {
    "file": {"nargs": "+", "type": Path},
    "--out": {"type": Path, "help": "what to write; beside the file by default"},
    "--run": {"help": "a folder in data/runs; the base model by default, or what the compressed file names"},
}
TRAINING = {
    "--method": {"default": "full"},
    "--seed": {"type": int, "default": 0},
    "--set": {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": "such as learning_rate=5e-5"},
    "--out": {"type": Path, "help": "a folder for the whole weights, LoRA merged, and the tokenizer"},
}
WRITING = {
    "--prompt": {"required": True, "help": "what the text goes on from; \\n in it begins a line"},
    "--run": {"help": "a folder in data/runs; the base model by default"},
    "--samples": {"type": int, "default": 0, "help": "how many texts to draw; by default the one greedy text"},
    "--tokens": {"type": int, "default": 120, "help": "the most that a text has"},
    "--seed": {"type": int, "default": 0},
}
KEPT = {"notebooks": {"nargs": "+"}, "--yes": FLAG}
CHECK, SOME = {"--check": FLAG | {"help": "change nothing, say what is wrong"}}, {"what": MANY}
COMMANDS = {  # name: (what is called with the options in their order, what it does, options)
    "fetch": ("lib.hub.fetch", "for offline use, all or some of model, wikitext2, lambada, blimp", SOME | MODEL),
    "run": ("lib.run.run", "execute notebooks, such as 01 02 03; all by default", RUN),
    "finetune": (finetune, "one fine-tuning run; also under accelerate launch", TRAINING | MODEL | TASK),
    "generate": ("lib.generate.write", "print what a model writes after a prompt", WRITING | MODEL),
    "bench": (bench, "against other libraries: all or some of training, evaluation, generation", SOME | MODEL),
    "compress": (compress, "text files with the language model", FILES | MODEL),
    "decompress": (lambda *given: compress(*given, back=True), "what compress wrote; exact, or refused", FILES | MODEL),
    "report": ("lib.report.fill.command", "fill report.md and README.md from data/results", CHECK),
    "check": ("lib.report.rubric.command", "the rubric: where each point is satisfied, or what is missing", MIDTERM),
    "export": ("lib.report.export.export", "into build/: html, docx, pdf, or some", SOME | MIDTERM | DRAFT),
    "pack": ("lib.report.pack.pack", "one zip to hand in, into build/", MIDTERM | DRAFT),
    "tidy": ("lib.run.tidy", "drop from saved .ipynb what git and GitHub cannot use", {"file": FILES["file"]}),
    "keep": ("lib.keep.keep", "explorations to hand in, such as 05 06; the others go with all that is theirs", KEPT),
    "colab": ("lib.colab.setup", "install what a Colab session lacks; its torch and numpy stay", {}),
}
COMMANDS = {n: c for n, c in COMMANDS.items() if n not in OPTIONAL or importlib.util.find_spec(OPTIONAL[n])}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib", description="GPT-2 fine-tuning coursework")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text, options) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for option, about in options.items():
            command.add_argument(*(["-o"] if option == "--out" else []), option, **about)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a pipe or a file in GBK has not every character
    chosen = vars(parser.parse_args(arguments))
    function, _, options = COMMANDS[chosen.pop("command")]
    os.environ |= {name: value for name, value in chosen.items() if name.isupper() and value}
    for name in ("TASK", "BASE_MODEL", "DATA_MIRROR", "PRIVATE_DATA"):  # notebooks run in a folder of their own
        path = Path(os.environ.get(name, "")).expanduser()
        if os.environ.get(name) and (path.is_file() if name == "TASK" else path.is_dir()):
            os.environ[name] = str(path.absolute())
    try:
        if isinstance(function, str):
            module, _, name = function.rpartition(".")
            function = getattr(importlib.import_module(module), name)
        done = function(*(chosen[name.removeprefix("--")] for name, about in options.items() if "dest" not in about))
        return int(done) if isinstance(done, int) else 0
    except ImportError as error:
        print(f"{error}: activate the environment, or `python -m pip install -r requirements.txt`.", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        said, number = stop.args or ("Interrupted; what is finished is kept.", signal.SIGINT)
        print(said, file=sys.stderr)
        return 128 + number


if __name__ == "__main__":
    sys.exit(main())
