"""The sample report as HTML, Word and PDF: complete, self-contained, nothing off the page."""

import io
import re
import shutil
import sys
import zipfile
from html import unescape

import numpy as np
import pytest
from PIL import Image
from sample_project import REPORT, figure, notebook, project, write

from lib.__main__ import main
from lib.report import document, export

FONT = "SimSun"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return project(tmp_path_factory.mktemp("export") / "项目", git=False)


@pytest.fixture(scope="module")
def tree(root):
    return document.read(root / "report.md", root, base="../")


@pytest.fixture(scope="module")
def html(root, tree):
    return export.to_html(tree, root).decode("utf-8")


@pytest.fixture(scope="module")
def word(root, tree):
    with zipfile.ZipFile(io.BytesIO(export.to_docx(tree, root))) as parts:
        return {name: parts.read(name).decode("utf-8", "replace") for name in parts.namelist()}


@pytest.fixture(scope="module")
def pages(root, tree):
    return [gray(page) for page in export.to_png(tree, root, ppi=50)]


def gray(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def trial(tmp_path, text):
    """The tree of a report of one's own."""
    figure(tmp_path / "figures/03_before_after.png")
    write(tmp_path / "report.md", "# Title\n\n" + text)
    return document.read(tmp_path / "report.md", tmp_path)


def test_html_needs_no_network_and_no_other_file(html):
    fetched = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"([^\"]*)", html)
    assert fetched and all(source.startswith("data:") for source in fetched)
    assert "url(http" not in html and "@import" not in html
    assert html.count("<math") >= 5 and "\\frac" not in re.sub(r"<annotation.*?</annotation>", "", html, flags=re.S)


def test_html_holds_the_whole_report(html):
    assert html.count("<table") == 3 and "红豆生南国，<br" in html
    assert "<title>Fine-tuning GPT-2 117M, before and after</title>" in html
    assert "1.229" in html and "<!--" not in html.replace("<!--[if", "")
    assert "Nats of the target's tokens" in re.sub(r"\s+", " ", unescape(html))
    assert '<a href="../lib/packing.py">' in html and '<a href="../data/README.md#debian">' in html


def test_figures_are_numbered_and_referred_to(html, tmp_path):
    assert re.search(r'<figure id="figure-03_before_after">', html)
    assert "Figure 1. Held-out" in re.sub(r"\s+", " ", html)
    assert '<a href="#figure-03_before_after">Figure 1</a>' in html
    assert (
        '<a href="#5-before-and-after-fine-tuning">section 5</a>' in html
        and 'id="5-before-and-after-fine-tuning"' in html
    )
    found = trial(
        tmp_path, "微调前后的比较。见[图](figures/03_before_after.png)\n\n![比较](figures/03_before_after.png)"
    )
    assert document.plain(found["blocks"]) == "微调前后的比较。见图 1图 1. 比较比较"


def test_a_paragraph_behind_a_table_becomes_its_caption(tmp_path):
    table = "| a | b |\n|--|--|\n| 1 | 2 |\n\n"
    found = trial(tmp_path, f"{table}Table: *first*, of two.\n\n{table}Table: second.\n\nTable: no table before.\n")
    assert [b["t"] for b in found["blocks"]] == ["Table", "Table", "Para"]
    captions = [document.plain(b["c"][1][1]) for b in found["blocks"][:2]]
    assert captions == ["Table 1. first, of two.", "Table 2. second."]


def test_a_short_table_stays_whole_and_a_long_one_breaks(tmp_path):
    def pages(rows: int) -> int:
        table = "| a | b |\n|--|--|\n" + "| x | y |\n" * rows
        root = project(tmp_path / str(rows), git=False)
        write(root / "report.md", f"# T\n\n{'filler text ' * 500}\n\n{table}")
        return len(export.to_png(document.read(root / "report.md", root), root, ppi=20))

    assert pages(10) <= 2 and pages(120) >= 3


def test_word_holds_figures_tables_formulas_and_a_chinese_font(word):
    body = word["word/document.xml"]
    assert body.count("<w:tbl>") == 3 and body.count("<m:oMath>") >= 5 and body.count("<w:drawing>") == 1
    assert "红豆生南国" in body and "1.229" in body and "Nats of the target" in word["word/footnotes.xml"]
    assert any(name.startswith("word/media/") for name in word)
    assert 'w:w="11906"' in body and 'w:h="16838"' in body
    assert " PAGE " in word["word/footer1.xml"] and "footerReference" in body
    styles = word["word/styles.xml"]
    assert "eastAsiaTheme" not in styles and f'w:eastAsia="{FONT}"' in styles
    assert "header1.xml" not in body and "word/header1.xml" not in word
    wide = int(re.search(r'<wp:extent[^>]*cx="(\d+)', body)[1])
    assert 10 < wide / 360_000 <= export.WIDTH + 0.01  # cm


def test_nothing_of_the_pdf_leaves_the_page(pages):
    assert len(pages) >= 3
    for page in pages:
        edge = round(page.shape[1] * 1.9 / 21)  # the margins are 2.3 cm of A4's 21
        assert page[:, :edge].min() > 250 and page[:, -edge:].min() > 250
        assert page.min() < 100


def test_pdf_is_a_pdf_and_a_draft_is_marked(tmp_path):
    tree = trial(tmp_path, "text")
    assert re.fullmatch(rb"%PDF-.*%%EOF\s*", export.to_pdf(tree, tmp_path), re.S)
    plain, draft = (gray(export.to_png(tree, tmp_path, draft=d, ppi=30)[0]) for d in (False, True))
    assert (draft < 240).mean() > (plain < 240).mean() + 0.01
    assert 'class="draft"' in export.to_html(tree, tmp_path, draft=True).decode("utf-8")
    with zipfile.ZipFile(io.BytesIO(export.to_docx(tree, tmp_path, draft=True))) as parts:
        assert b"DRAFT" in parts.read("word/header1.xml")
        assert b"headerReference" in parts.read("word/document.xml")


@pytest.mark.parametrize("form", ["{}", "`{}`", "**{}**", "$\\text{{{}}}$", "```\n{}\n```"])
def test_chinese_is_drawn_and_not_as_boxes(tmp_path, form):
    """Two characters hold ink and differ; boxes would be the same."""
    left, right = (
        gray(export.to_png(trial(tmp_path, form.format(han)), tmp_path, ppi=150)[0])[:, 130:200] < 128 for han in "红豆"
    )
    assert left.sum() > 50 and right.sum() > 50 and (left != right).sum() > 50


def test_spaces_in_formulas_do_not_overlap(tmp_path, root):
    found = trial(tmp_path, r"$a\!\left(b\right)\;c$ and $\odot$")
    source = export._typst(found, tmp_path, False).decode("utf-8")
    assert "#h(" not in source
    assert export.to_pdf(found, tmp_path)


def test_a_tall_figure_stays_on_its_page(tmp_path):
    found = trial(tmp_path, "![tall](figures/03_before_after.png)")
    Image.new("RGB", (1000, 5000), "black").save(tmp_path / "figures/03_before_after.png", dpi=(200, 200))
    assert len(export.to_png(found, tmp_path)) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "![x](figures/04_gone.png)",
            r"report.md shows figures/04_gone.png, which is missing: `git .*` or `python -m lib run 04`",
        ),
        ("![x](https://example.com/x.png)", "lies in the network; save the picture"),
        ("<details>\n\ntext\n\n</details>", "Word and PDF would leave out the HTML '<details>'"),
        ("a <img src='x'> b", "Word and PDF would leave out the HTML"),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        trial(tmp_path, text)


def test_html_that_has_a_counterpart_is_kept(tmp_path):
    found = trial(tmp_path, 'H<sub>2</sub>O<br>x<sup>2</sup> <b>bold</b> <a id="here"></a>[go](#here)')
    kinds = [e["t"] for e in found["blocks"][0]["c"]]
    assert {"Subscript", "Superscript", "LineBreak", "Strong", "Span"} <= set(kinds)
    assert "RawInline" not in kinds


def test_a_line_may_begin_with_a_marker(tmp_path):
    found = trial(tmp_path, "<!--= a -->1.5<!--/--> is *it*\n\n<!-- begin t -->\n| a |\n|--|\n| 1 |\n<!-- end t -->\n")
    assert document.plain(found["blocks"][0]) == "1.5 is it" and found["blocks"][1]["t"] == "Table"


def test_a_character_without_a_glyph_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fonts lack \U0001f9a5 \(U\+1F9A5\)"):
        export.to_pdf(trial(tmp_path, "a sloth \U0001f9a5"), tmp_path)


def test_a_formula_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pandoc: .*\\nosuchmacro"):
        export.to_html(trial(tmp_path, r"$\nosuchmacro{1}$"), tmp_path)


def test_missing_tools_are_one_sentence(tmp_path, monkeypatch):
    tree = trial(tmp_path, "text")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="fonts are missing: `pip install mplfonts`"):
        export.to_pdf(tree, tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(RuntimeError, match="typst is missing: `pip install"):
        export.to_pdf(tree, tmp_path)
    monkeypatch.setitem(sys.modules, "pypandoc", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    document.pandoc_path.cache_clear()
    with pytest.raises(RuntimeError, match="pandoc is missing: `pip install pypandoc-binary`"):
        document.read(tmp_path / "report.md", tmp_path)
    document.pandoc_path.cache_clear()


def test_a_notebook_becomes_one_file(root, tmp_path):
    page = export.notebook_html(root / "notebooks/03_evaluate.ipynb").decode("utf-8")
    assert (
        "bits per byte 1.042" in page
        and "<math" in page
        and "红豆" in page
        and "http" not in re.sub(r"xmlns=\"[^\"]*\"|http://www.w3.org/\S*", "", page)
    )
    empty = tmp_path / "04_empty.ipynb"
    write(empty, re.sub(r'"outputs": \[.*?\n   \]', '"outputs": []', notebook("04_empty"), flags=re.S))
    with pytest.raises(ValueError, match=r"04_empty.ipynb was not executed: `python -m lib run 04`"):
        export.notebook_html(empty)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project whose formats cost nothing to write."""
    project(tmp_path, git=False)
    for name in export.FORMATS:
        monkeypatch.setitem(export.FORMATS, name, lambda tree, root, draft, name=name: name.encode())
    return tmp_path


def test_export_writes_everything_into_build_and_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(export, "notebook_html", lambda path: b"page")
    done = export.export(root=small)
    names = [path.relative_to(small / "build").as_posix() for path in done]
    assert names[:4] == ["report.html", "report.docx", "report.pdf", "notebooks/01_load_and_generate.html"]
    assert capsys.readouterr().out.count(" MB ") == len(done) == 8
    assert export.export(["pdf"], midterm=True, root=small) == [small / "build/readme.pdf"]
    with pytest.raises(ValueError, match="Nothing is exported as 'doc': choose of html, docx"):
        export.export(["doc"], root=small)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_export_leaves_the_previous_file(small, monkeypatch, error):
    export.export(["html"], root=small)

    def stop(tree, root, draft):
        raise error("stopped")

    monkeypatch.setitem(export.FORMATS, "html", stop)
    with pytest.raises(error):
        export.export(["html"], root=small)
    assert {p.name: p.read_bytes() for p in (small / "build").iterdir()} == {"report.html": b"html"}


def test_a_folder_that_cannot_be_written_is_one_sentence(small):
    write(small / "build", "a file where the folder should be")
    with pytest.raises(OSError, match=r"report.html was not written \(.*\); free space or choose a folder you own"):
        export.export(["html"], root=small)


def test_a_report_that_is_missing_or_not_utf8(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report.md is missing in .*: write it first"):
        export.export(["html"], root=tmp_path)
    (tmp_path / "report.md").write_bytes("# 红豆".encode("gbk"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        export.export(["html"], root=tmp_path)
    write(tmp_path / "report.md", REPORT)
    with pytest.raises(ValueError, match=r"figures/03_before_after.png, which is missing"):
        export.export(["html"], root=tmp_path)


def test_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr(export, "export", lambda *arguments: asked.append(arguments))
    assert main(["export", "pdf", "--midterm"]) == 0
    assert main(["export", "--draft"]) == 0
    assert asked == [(["pdf"], True, False), ([], False, True)]
