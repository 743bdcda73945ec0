"""`python -m lib export`: the report as HTML, Word and PDF, and the notebooks as HTML, by wheels alone.

Everything lands in build/, whole or not at all. The same report gives the same bytes: no dates, and no
fonts but those of the wheels.
"""

import copy
import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import PIL.Image
from matplotlib.ft2font import FT2Font

from lib import profile
from lib.report import document, layout
from lib.report.document import pandoc, plain, walk
from lib.results import write_bytes

WHAT = ("html", "docx", "pdf", "notebooks")
LINE = 104  # letters of a table's text in a line of a Word page, digits being wider than most
PADDING = 3  # letters that a cell's margins take
LONG = 24  # rows of a table that, with cells of two lines, no longer fits a page
WIDTH, HEIGHT = 16.0, 10.5  # cm at most of a picture on an A4 page
REPORTS = {False: "report.md", True: "README.md"}  # the mid-term report is README


def export(
    what: Sequence[str] = (),
    midterm: bool = False,
    draft: bool = False,
    root: Path = profile.ROOT,
    report: str | None = None,
) -> list[Path]:
    """Write build/<report>.html, .docx, .pdf and build/notebooks/*.html; returns their paths.

    `what` is some of WHAT, all by default; `report` another Markdown file below `root`. Raises ValueError
    with one sentence for what can't be exported; what stood in build/ before stays.
    """
    if unknown := [name for name in what if name not in WHAT]:
        raise ValueError(f"Nothing is exported as {unknown[0]!r}: choose of {', '.join(WHAT)}.")
    wanted = [name for name in WHAT if name in (what or WHAT)]
    source = root / (report or REPORTS[midterm])
    out, done = root / "build", []
    if set(wanted) & set(FORMATS):
        tree = document.read(source, root, base="../")
    for name in (w for w in wanted if w in FORMATS):
        path = out / f"{source.stem.lower()}.{name}"
        done.append(_write(path, lambda name=name: FORMATS[name](tree, root, draft)))
    if "notebooks" in wanted:
        found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
        if not found:
            raise ValueError("No executed notebook in notebooks/: `python -m lib run` makes them.")
        for notebook in found:
            path = out / "notebooks" / f"{notebook.stem}.html"
            done.append(_write(path, lambda notebook=notebook: notebook_html(notebook)))
    return done


def _write(path: Path, make: Callable[[], bytes]) -> Path:
    began = time.monotonic()
    print(f"{'/'.join(path.parts[-2:]):40}", end="", flush=True)
    try:
        data = make()
        write_bytes(path, data)
    except BaseException:
        print("not written", flush=True)
        raise
    print(f"{len(data) / 1e6:6.2f} MB  {time.monotonic() - began:5.1f} s", flush=True)
    return path


def to_html(tree: dict, root: Path, draft: bool = False) -> bytes:
    """One file: pictures inside, formulas as MathML, nothing fetched from a network."""
    return _standalone(json.dumps(tree), "json", root, plain(tree["meta"]["title"]), draft, toc=True)


def notebook_html(path: Path) -> bytes:
    """An executed notebook with its outputs, in the report's style."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        way_out = f"`python -m lib run {path.name[:2]}`"
        raise ValueError(f"{path.name} is no notebook ({error!r}): {way_out}.") from error
    if not any(cell.get("outputs") for cell in cells):
        raise ValueError(f"{path.name} was not executed: `python -m lib run {path.name[:2]}`.")
    return _standalone(path.read_bytes(), "ipynb", path.parent, path.stem)


def _standalone(source, reader: str, root: Path, title: str, draft=False, toc=False) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        head, before = Path(folder) / "head.html", Path(folder) / "before.html"
        head.write_text(layout.html_head(), encoding="utf-8")
        before.write_text(layout.html_draft() if draft else "", encoding="utf-8")
        return pandoc(
            source,
            "-f",
            reader,
            "-t",
            "html5",
            "--standalone",
            "--embed-resources",
            "--mathml",
            "--wrap=preserve",
            "-M",
            f"pagetitle={title}",
            "-M",
            "document-css=false",
            "-H",
            str(head),
            "-B",
            str(before),
            *(["--toc", "--toc-depth=2"] if toc else []),
            cwd=root,
        )


def to_docx(tree: dict, root: Path, draft: bool = False) -> bytes:
    """Word, A4, with page numbers, native formulas and a Chinese font."""
    with tempfile.TemporaryDirectory() as folder:
        styles = Path(folder) / "reference.docx"
        default = pandoc(b"", "--print-default-data-file", "reference.docx", cwd=root)
        styles.write_bytes(layout.word_styles(default, draft))
        tree = _fitted(tree, root)
        tree["blocks"] = walk(tree["blocks"], _word_table)
        return pandoc(json.dumps(tree), "-f", "json", "-t", "docx", "--reference-doc", str(styles), cwd=root)


def to_pdf(tree: dict, root: Path, draft: bool = False) -> bytes:
    """PDF through typst, with the fonts of wheels only. Raises ValueError for a character that none of them has."""
    source = _typst(tree, root, draft)
    return _compile(source, root, format="pdf")


def to_png(tree: dict, root: Path, draft: bool = False, ppi: float = 100) -> list[bytes]:
    """The pages of `to_pdf` as pictures, to look at."""
    pages = _compile(_typst(tree, root, draft), root, format="png", ppi=ppi)
    return pages if isinstance(pages, list) else [pages]


def _typst(tree: dict, root: Path, draft: bool) -> bytes:
    tree = _fitted(tree, root)
    _check_glyphs(plain(tree["blocks"]) + plain(tree["meta"]["title"]))
    tree["blocks"] = [b for e in walk(tree["blocks"], _narrow_spaces) for b in _long_tables(e)]
    headings = [i for i, block in enumerate(tree["blocks"]) if block["t"] == "Header"]
    if len(headings) > 2:
        tree["blocks"].insert(headings[0], {"t": "RawBlock", "c": ["typst", "#outline(depth: 2)"]})
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "report.typ"
        template.write_text(layout.TYPST, encoding="utf-8")
        return pandoc(
            json.dumps(tree),
            "-f",
            "json",
            "-t",
            "typst",
            "--standalone",
            "--wrap=preserve",
            "--syntax-highlighting=idiomatic",
            "--template",
            str(template),
            *(["-V", "draft=1"] if draft else []),
            cwd=root,
        )


def _compile(source: bytes, root: Path, **options):
    try:
        import typst
    except ImportError:
        raise RuntimeError("typst is missing: `pip install typst` brings it.") from None
    try:
        compiler = typst.Compiler(root=root, font_paths=_fonts(), ignore_system_fonts=True)
        # typst takes source given as bytes for a file in `root`, so that figures are found
        return compiler.compile(input=source, **options)
    except (typst.TypstError, RuntimeError) as error:
        raise ValueError(f"typst: {' '.join(str(error).split())[:600]}") from error


@lru_cache
def _fonts():
    import typst

    return typst.Fonts(include_system_fonts=False, font_paths=font_folders())


def font_folders() -> list[str]:
    """The fonts of the wheels mplfonts (Noto CJK) and matplotlib (DejaVu). Raises RuntimeError without."""
    folders = []
    for name, below in (("mplfonts", "fonts"), ("matplotlib", "mpl-data/fonts/ttf")):
        wheel = importlib.util.find_spec(name)
        found = Path(next(iter(wheel.submodule_search_locations))) / below if wheel else None
        if found is None or not found.is_dir():
            raise RuntimeError(f"The PDF's fonts are missing: `pip install {name}` brings them.")
        folders.append(str(found))
    return folders


def _check_glyphs(text: str) -> None:
    """Raise ValueError for characters that neither Noto CJK nor DejaVu has."""
    noto, dejavu = map(Path, font_folders())
    files = [dejavu / "DejaVuSans.ttf", noto / "NotoSansCJKsc-Regular.otf"]
    if lost := next((file for file in files if not file.is_file()), None):
        raise RuntimeError(f"The font {lost.name} is missing: `pip install -r requirements.txt`.")
    missing = {c for c in text if c.isprintable() and c != " "}
    for file in files:
        font = FT2Font(str(file))
        missing = {c for c in missing if not font.get_char_index(ord(c))}
    if missing:
        shown = ", ".join(f"{c} (U+{ord(c):04X})" for c in sorted(missing)[:8])
        raise ValueError(f"The PDF's fonts lack {shown}: write it otherwise in the report.")


def _fitted(tree: dict, root: Path) -> dict:
    """`tree` with widths, in cm, that leave each picture within WIDTH and HEIGHT."""

    def fit(element: dict) -> dict:
        if element["t"] == "Image":
            with PIL.Image.open(root / element["c"][2][0]) as picture:
                (wide, high), dpi = picture.size, picture.info.get("dpi", (96, 96))[0]
            width = min(WIDTH, HEIGHT * wide / high, wide / dpi * 2.54)
            element["c"][0][2] = [["width", f"{width:.2f}cm"]]
        return element

    return {**tree, "blocks": walk(copy.deepcopy(tree["blocks"]), fit)}


def _word_table(element: dict) -> dict:
    """A table in small letters whose columns are as wide as their cells ask: Word would make them all alike."""
    if element["t"] != "Table":
        return element
    rows = [*element["c"][3][1], *(row for body in element["c"][4] for row in body[3])]
    cells = [cell for row in rows for cell in row[1]]
    for cell in cells:
        blocks = cell[4] or [{"t": "Plain", "c": [{"t": "Str", "c": "\N{NO-BREAK SPACE}"}]}]
        cell[4] = [{"t": "Div", "c": [["", [], [["custom-style", layout.TABLE_TEXT]]], blocks]}]
    texts = [[plain(cell[4]) for cell in row[1]] for row in rows]
    longest = [max(map(len, column)) + PADDING for column in zip(*texts, strict=True)]
    least = [
        max(len(word) for text in column for word in [*text.split(), ""]) + PADDING
        for column in zip(*texts, strict=True)
    ]
    cap = max(longest)
    while sum(map(max, least, (min(n, cap) for n in longest))) > LINE and cap > min(least):
        cap -= 1
    wide = list(map(max, least, (min(n, cap) for n in longest)))
    for column, n in zip(element["c"][2], wide, strict=True):
        column[1] = {"t": "ColWidth", "c": n / max(LINE, sum(wide))}
    return element


def _narrow_spaces(element: dict) -> dict:
    r"""A formula without \! \: \; which pandoc's typst writer rounds to whole em."""
    if element["t"] == "Math":
        kind, formula = element["c"]
        spaces = re.compile(r"(?<!\\)\\[!:;]")
        element["c"] = [kind, spaces.sub(lambda m: "" if m[0] == r"\!" else r"\,", formula)]
    return element


def _long_tables(block: dict) -> list[dict]:
    """A table of more rows than LONG may break over pages; a shorter one moves to the next page whole."""
    if block["t"] != "Table" or sum(len(body[3]) for body in block["c"][4]) <= LONG:
        return [block]
    open_, close = "#[\n#show figure.where(kind: table): set block(breakable: true)", "]"
    raw = [{"t": "RawBlock", "c": ["typst", text]} for text in (open_, close)]
    return [raw[0], block, raw[1]]


FORMATS = {"html": to_html, "docx": to_docx, "pdf": to_pdf}
