"""A Markdown report as pandoc's document tree, made ready for HTML, Word and PDF alike.

GitHub's Markdown is read, so that the file and its exports say the same. What GitHub alone can show is
replaced here: comments go, figures become numbered and may be linked to, links between files keep
working from where the export lies.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from lib.report.outline import language, without_comments

READER = "gfm+east_asian_line_breaks"
EPOCH = "315532800"  # 1980-01-01, the first date a zip can hold: the same report gives the same bytes
FIGURE = {"en": "Figure", "zh": "图"}
TABLE = {"en": "Table", "zh": "表"}
BARE_FIGURE = re.compile(r"figure|fig\.|图", re.IGNORECASE)
NUMBERED = re.compile(r"(?:figure|fig\.|图)\s*\d", re.IGNORECASE)
PAIRED = {"sub": "Subscript", "sup": "Superscript", "b": "Strong", "i": "Emph", "em": "Emph", "strong": "Strong"}


@lru_cache
def pandoc_path() -> str:
    """The pandoc of the wheel pypandoc-binary, else an installed one. Raises RuntimeError without either."""
    try:
        import pypandoc

        folder = Path(pypandoc.__file__).parent / "files"
    except ImportError:
        folder = Path()
    found = next((str(p) for p in folder.glob("pandoc*") if p.suffix in ("", ".exe")), None)
    if found := found or shutil.which("pandoc"):
        return found
    raise RuntimeError("pandoc is missing: `pip install pypandoc-binary` brings it.")


def pandoc(source: str | bytes, *arguments: str, cwd: Path) -> bytes:
    """What pandoc makes of `source`. Raises ValueError with its message where it fails, and where it warns
    that a formula or a picture is left out."""
    data = source.encode("utf-8") if isinstance(source, str) else source
    run = subprocess.run(
        [pandoc_path(), *arguments],
        input=data,
        cwd=cwd,
        capture_output=True,
        check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
    )
    said = run.stderr.decode("utf-8", errors="replace").strip()
    if run.returncode or re.search("Could not (convert|fetch|determine image)", said):
        raise ValueError(f"pandoc: {' '.join(said.split())[:600]}")
    return run.stdout


def read(path: Path, root: Path, base: str = "") -> dict:
    """The tree of the Markdown file `path`, whose figures and links are relative to `root`.

    `base` goes before links to other files: "../" for an export one folder below `root`. Raises ValueError
    for a figure that is not there, and for HTML that Word and PDF would leave out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.name} is missing in {root}: write it first.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from None
    arguments = ("-f", READER, "-t", "json", "--shift-heading-level-by=-1")
    tree = json.loads(pandoc(without_comments(text), *arguments, cwd=root))
    lang = language(text)
    tree["meta"].setdefault("title", {"t": "MetaInlines", "c": [_str(path.stem)]})
    tree["meta"]["lang"] = {"t": "MetaInlines", "c": [_str({"zh": "zh-Hans"}.get(lang, lang))]}
    tree["meta"]["language"] = {"t": "MetaInlines", "c": [_str(lang)]}
    figures: dict[str, int] = {}

    tree["blocks"] = walk(tree["blocks"], lambda e: _figure(e, figures, lang, path.name, root))
    tree["blocks"] = walk(tree["blocks"], _table)
    tree["blocks"] = walk(tree["blocks"], lambda e: _link(e, figures, root, base))
    tree["blocks"] = _captions(tree["blocks"], TABLE[lang])
    _refuse_html(tree["blocks"], path.name)
    return tree


def walk(node, change: Callable[[dict], dict]):
    """`node` with `change` applied to each of its elements, the inner ones first."""
    if isinstance(node, list):
        return _inline_html([walk(child, change) for child in node])
    if not isinstance(node, dict):
        return node
    node = {key: walk(value, change) for key, value in node.items()}
    return change(node) if "t" in node else node


def plain(node) -> str:
    """The words of a tree."""
    if isinstance(node, list):
        return "".join(map(plain, node))
    if not isinstance(node, dict):
        return ""
    content = node.get("c")
    if node.get("t") in ("Space", "SoftBreak", "LineBreak"):
        return " "
    if node.get("t") in ("Str", "Code", "CodeBlock", "Math"):
        return content if isinstance(content, str) else content[-1]
    return "".join(map(plain, node.values())) if "t" not in node else plain(content)


def pictures(node) -> list[str]:
    """The files of the pictures in a tree, as they are written in it."""
    found: list[str] = []

    def note(element: dict) -> dict:
        if element["t"] == "Image":
            found.append(element["c"][2][0])
        return element

    walk(node, note)
    return found


def _str(text: str) -> dict:
    return {"t": "Str", "c": text}


def _figure(element: dict, figures: dict[str, int], lang: str, name: str, root: Path) -> dict:
    """A picture alone in its paragraph as a numbered figure, named after its file."""
    if element["t"] == "Image":
        target = unquote(element["c"][2][0])
        if "://" in target:
            raise ValueError(f"{name}: {target} lies in the network; save the picture in figures/.")
        if not (root / target).is_file():
            raise ValueError(f"{name} shows {target}, which is missing: {way_back(target)}.")
        element["c"][2][0] = target
    if element["t"] != "Para" or [e["t"] for e in element["c"]] != ["Image"]:
        return element
    (_, _, attributes), caption, (target, title) = element["c"][0]["c"]
    figures[target] = number = len(figures) + 1
    picture = {"t": "Image", "c": [["", [], attributes], caption, [target, title]]}
    if not NUMBERED.match(plain(caption)):
        caption = [_str(f"{FIGURE[lang]} {number}. "), *caption]
    content = [[None, [{"t": "Plain", "c": caption}]], [{"t": "Plain", "c": [picture]}]]
    return {"t": "Figure", "c": [[_identifier(target), [], []], *content]}


def way_back(target: str) -> str:
    """How a deleted figure comes back."""
    number = re.match(r"figures/(\d\d)_", target)
    return f"`git checkout {target}`" + (f" or `python -m lib run {number[1]}`" if number else "")


def _identifier(target: str) -> str:
    return "figure-" + re.sub(r"\W+", "-", Path(target).stem)


def _link(element: dict, figures: dict[str, int], root: Path, base: str) -> dict:
    """A link to a shown figure's file leads to the figure; "Figure" or "图" alone gets its number."""
    if element["t"] != "Link":
        return element
    attributes, label, (target, title) = element["c"]
    if target in figures:
        if BARE_FIGURE.fullmatch(plain(label).strip()):
            label = [*label, _str(f" {figures[target]}")]
        target = "#" + _identifier(target)
    elif (root / unquote(target).partition("#")[0]).exists() and not target.startswith("#"):
        target = base + target
    return {"t": "Link", "c": [attributes, label, [target, title]]}


def _table(element: dict) -> dict:
    """A table whose columns are left-aligned where nothing is said, without a head that is empty."""
    if element["t"] == "Table":
        columns, head = element["c"][2:4]
        for column in columns:
            if column[0]["t"] == "AlignDefault":
                column[0] = {"t": "AlignLeft"}
        if not plain(head[1]).strip():
            head[1] = []
    return element


def _captions(blocks: list, word: str) -> list:
    """A paragraph "Table: ..." right behind a table as the table's numbered caption."""
    done, number = [], 0
    for block in blocks:
        start = re.match(r"(?:Table|表)\s*[:：]\s*", plain(block)) if block["t"] == "Para" else None
        if start and done and done[-1]["t"] == "Table" and not done[-1]["c"][1][1]:
            number += 1
            words = block["c"][1:]
            while words and words[0]["t"] in ("Space", "SoftBreak"):
                words = words[1:]
            rest = re.sub(r"^(?:Table|表)\s*[:：]", "", plain(block["c"][0]))
            caption = [_str(f"{word} {number}. {rest}"), *words]
            done[-1]["c"][1] = [None, [{"t": "Plain", "c": caption}]]
        else:
            done.append(block)
    return done


def _inline_html(elements: list) -> list:
    """<br>, <a id="...">, <sub>, <sup>, <b> and <i> as pandoc's own elements."""
    done: list = []
    for element in elements:
        if not (isinstance(element, dict) and element.get("t") == "RawInline"):
            done.append(element)
            continue
        tag = element["c"][1].strip().lower()
        opened = [i for i, e in enumerate(done) if isinstance(e, dict) and e.get("t") == "RawInline"]
        name = tag.strip("</>")
        if re.fullmatch(r"<br\s*/?>", tag):
            done.append({"t": "LineBreak"})
        elif anchor := re.fullmatch(r"""<a (?:id|name)=["']([^"']+)["']\s*/?>""", tag):
            done.append({"t": "Span", "c": [[anchor[1], [], []], []]})
        elif tag == "</a>":
            continue
        elif tag.startswith("</") and name in PAIRED and opened:
            inner = done[opened[-1] + 1 :]
            done[opened[-1] :] = [{"t": PAIRED[name], "c": inner}]
        else:
            done.append(element)
    return done


def _refuse_html(blocks: list, name: str) -> None:
    def refuse(element: dict) -> dict:
        if element["t"] in ("RawInline", "RawBlock"):
            shown = element["c"][1].strip().splitlines()[0][:60]
            raise ValueError(f"{name}: Word and PDF would leave out the HTML {shown!r}; write it in Markdown.")
        return element

    walk(blocks, refuse)
