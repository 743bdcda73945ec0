"""`python -m lib export`: the report as HTML, Word and PDF, into build/.

pandoc reads GitHub's Markdown; what a page looks like stands in `templates`, in pandoc's and typst's forms. The same
report gives the same bytes: no dates, and no fonts but those of the wheels. A file is written whole or not at all."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

from lib import profile
from lib.plots import NOTO
from lib.report.fill import MARK, blank, read
from lib.report.rubric import language
from lib.results import write_bytes

WHAT = ("html", "docx", "pdf")
TEMPLATES = Path(__file__).parent / "templates"
FONTS = (NOTO.parent, Path(matplotlib.get_data_path()) / "fonts" / "ttf")  # Noto CJK and DejaVu, of the wheels
EPOCH = "315532800"  # 1980-01-01, the first date a zip can hold
REFERENCE = re.compile(r"<!--# \S+ -->(\w+) (\d+)<!--/-->")


def export(what: Sequence[str] = (), midterm=False, draft=False, root: Path = profile.ROOT) -> list[Path]:
    """Write build/report.html, .docx and .pdf (`what`: some of WHAT); returns their paths.

    With `midterm` README.md is the report. Raises ValueError in one sentence for what can't be exported, and when all
    others are made PermissionError for files that another program has open."""
    what = [name.lower() for name in what]
    if unknown := [name for name in what if name not in WHAT]:
        raise ValueError(f"Nothing is exported as {unknown[0]!r}: choose one of {', '.join(WHAT)}.")
    source, done, held = root / ("README.md" if midterm else "report.md"), [], []
    for form in (name for name in WHAT if name in (what or WHAT)):
        done.append(path := root / "build" / f"{source.stem.lower()}.{form}")
        data = document(source, form, base="../", draft=draft)
        try:
            write_bytes(path, data)
        except PermissionError as error:  # Word has it open
            held.append(str(error))
            continue
        print(f"build/{path.name:34}{len(data) / 1e6:6.2f} MB", flush=True)
    if held:
        raise PermissionError("\n  ".join(held))
    return done


def document(source: Path, form: str, base: str = "", draft: bool = False) -> bytes:
    """The Markdown file `source` as "html", "docx" or "pdf"; `base` goes before its links to other files."""
    root, text = source.parent, read(source)
    lang = language(text)
    # an interval stays in one line, and a number with its percent sign
    text = re.sub(r"(\[[-+.,\d]+,|[\d\]]) (?=[-+.,\d]+\]|%)", "\\1\u00a0", text)
    text = re.sub(r"(?<![\w.`])([\d.]+)e-0?(\d+)\b", r"$\1 \\cdot 10^{-\2}$", text)  # 8e-06 is how a program writes
    text = re.sub(r"(?<=\d)\u2013(?=\d)", "\u2013\u2060", text)  # a range stays in one line
    text = REFERENCE.sub(lambda m: f"[{m[1]} {m[2]}](#{m[1].lower()}-{m[2]})", text)
    more = ["-M", f"base={base}", "-M", f"lang={lang.replace('zh', 'zh-Hans')}", "-V", f"language={lang}"]
    mark = '<div class="draft">DRAFT, not for submission</div>' * draft
    if form == "html":
        return pandoc(text, root, "html", *more, "-V", f"include-before={mark}")
    if form == "docx":
        return pandoc(text, root, "docx", *more, *["--reference-doc", str(TEMPLATES / "draft.docx")] * draft)
    return typeset(pandoc(drawable(text), root, "typst", *more, *["-V", "draft=1"] * draft), root)


def pandoc(text: str, folder: Path, form: str, *options: str) -> bytes:
    """What pandoc makes of `text`, whose pictures are relative to `folder`, by the templates "report" and `form`.

    Raises ValueError with its message where it fails; RuntimeError without the wheel pypandoc-binary or a pandoc."""
    try:
        import pypandoc

        command = pypandoc.get_pandoc_path()
    except (ImportError, OSError):
        command = shutil.which("pandoc")
    if not command:
        raise RuntimeError("pandoc is missing: `pip install pypandoc-binary` brings it.")
    templates = [f"--defaults={TEMPLATES / name}.yaml" for name in ("report", form)]
    given = {"cwd": folder, "env": {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, "capture_output": True}
    run = subprocess.run([command, *templates, *options, "-o", "-"], input=text.encode("utf-8"), **given)
    if run.returncode:
        raise ValueError(" ".join(run.stderr.decode("utf-8", errors="replace").split())[:600])
    return run.stdout


def typeset(source: bytes, root: Path, **options):
    """The PDF of a typst source whose pictures lie below `root`; `format="png"` gives pictures of the pages."""
    import typst

    fonts = typst.Fonts(include_system_fonts=False, font_paths=[str(path) for path in FONTS])
    try:
        # typst takes source given as bytes for a file in `root`, so that figures are found
        return typst.Compiler(root=root, font_paths=fonts, ignore_system_fonts=True).compile(input=source, **options)
    except (typst.TypstError, RuntimeError) as error:
        raise ValueError(f"typst: {' '.join(str(error).split())[:600]}") from error


def drawable(text: str) -> str:
    """A report whose results, such as a model's outputs, name the characters that neither Noto CJK nor DejaVu has by
    their numbers. Raises ValueError for those that people wrote."""
    missing = {c for c in text if c.isprintable() and c != " "}
    for file in (FONTS[1] / "DejaVuSans.ttf", NOTO):
        font = FT2Font(str(file))
        missing = {c for c in missing if not font.get_char_index(ord(c))}
    if written := missing & set(blank(text, MARK)):
        shown = ", ".join(f"{c} (U+{ord(c):04X})" for c in sorted(written)[:8])
        raise ValueError(f"The PDF's fonts lack {shown}: write it otherwise in the report.")
    return text.translate({ord(c): f"(U+{ord(c):04X})" for c in missing})
