"""The sample report as HTML, Word and PDF: complete, self-contained, nothing off the page."""

import io
import re
import zipfile
from html import unescape

import numpy as np
import pytest
from PIL import Image
from sample_project import figure, project, write

from lib.report import export, fill
from lib.results import markdown_table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return project(tmp_path_factory.mktemp("export") / "项目", git=False)


@pytest.fixture(scope="module")
def html(root):
    return export.document(root / "report.md", "html", base="../").decode("utf-8")


def trial(folder, text, title="# Title\n\n"):
    figure(folder / "figures/03_before_after.png")
    write(folder / "report.md", title + text)
    return folder / "report.md"


def pages(path, *options, ppi=50):
    """The pages of the PDF, in shades of gray."""
    source = export.pandoc(path.read_text("utf-8"), path.parent, "typst", "-V", "language=en", *options)
    drawn = export.typeset(source, path.parent, format="png", ppi=ppi)
    return [np.asarray(Image.open(io.BytesIO(p)).convert("L")) for p in (drawn if isinstance(drawn, list) else [drawn])]


def fits(*pages) -> bool:
    edge = round(pages[0].shape[1] * 1.9 / 21)  # the margins are 2.3 cm of A4's 21
    return all(p[:, :edge].min() > 250 and p[:, -edge:].min() > 250 and p.min() < 100 for p in pages)


def parts(docx: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(docx)) as opened:
        return {name: opened.read(name).decode("utf-8", "replace") for name in opened.namelist()}


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html.partition("<body>")[2])).split())


def test_html_holds_the_whole_report_and_needs_no_other_file(html):
    fetched = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"([^\"]*)", html)
    assert fetched and all(source.startswith("data:") for source in fetched)
    assert "url(http" not in html and "@import" not in html and "max-width: 47rem" in html
    assert html.count("<math") >= 5 and "\\frac" not in re.sub(r"<annotation.*?</annotation>", "", html, flags=re.S)
    assert html.count("<table") == 3 and "红豆生南国，<br" in html and "1.229" in html
    assert "<title>Fine-tuning GPT-2 117M, before and after</title>" in html and "<!--" not in html
    assert "Nats of the target’s tokens" in words(html) and 'class="draft"' not in html
    assert '<a href="../lib/packing.py">' in html and '<a href="../data/README.md#debian">' in html


def test_captions_have_the_texts_numbers_and_are_referred_to(html, tmp_path):
    assert '<figure id="figure-1">' in html and "Figure 1. Held-out" in words(html)
    assert '<a href="#5-before-and-after-fine-tuning">section 5</a>' in html
    table = "| zstd --ultra -22 | it's -2.5 [-3, -2] |\n|--|--|\n| 1<!--= 03.a -->.5<!--/--> | 8e-06 |\n\n"
    text = f"{table}Table: *first*.\n\n<!-- begin 03.b -->\n\n{table}Table: 2nd.\n\n<!-- end 03.b -->\n"
    text = fill.filled(f"see <!--# 03.b -->?<!--/-->\n\n{text}", {"values": {}, "tables": {}})
    found = export.document(trial(tmp_path, text), "html").decode()
    assert "Table 1. first." in words(found) and "Table 2. 2nd." in words(found) and "1.5" in words(found)
    assert "zstd ‑‑ultra ‑22 it’s −2.5 [−3, −2]" in words(found), "no minus but where numbers are"
    assert "8⋅10−6" in words(found) and "8e-06" not in words(found)
    assert '<a href="#table-2">Table 2</a>' in found and '<table id="table-2">' in found
    assert export.document(tmp_path / "report.md", "pdf").startswith(b"%PDF")


def test_word_holds_figures_tables_formulas_and_a_chinese_font(root):
    word = parts(export.document(root / "report.md", "docx"))
    body = word["word/document.xml"]
    assert body.count("<w:tbl>") == 3 and body.count("<m:oMath>") >= 5 and body.count("<w:drawing>") == 1
    assert "红豆生南国" in body and "1.229" in body and "Nats of the target" in word["word/footnotes.xml"]
    assert any(name.startswith("word/media/") for name in word) and 'w:w="11906"' in body  # A4
    assert " PAGE " in word["word/footer1.xml"] and "footerReference" in body and "word/header1.xml" not in word
    assert "eastAsiaTheme" not in word["word/styles.xml"] and 'w:eastAsia="SimSun"' in word["word/styles.xml"]
    assert 10 < int(re.search(r'<wp:extent[^>]*cx="(\d+)', body)[1]) / 360_000 <= 16.01  # cm


def test_nothing_of_the_pdf_leaves_the_page(root, tmp_path):
    found = pages(root / "report.md")
    tall = trial(tmp_path, "![tall](figures/03_before_after.png)")
    Image.new("RGB", (1000, 5000), "black").save(tmp_path / "figures/03_before_after.png", dpi=(200, 200))
    assert len(found) >= 3 and len(pages(tall)) == 1
    assert fits(*found)


def test_a_draft_is_marked_in_every_format(tmp_path):
    path = trial(tmp_path, "text")
    assert re.fullmatch(rb"%PDF-.*%%EOF\s*", export.document(path, "pdf", draft=True), re.S)
    plain, draft = ((pages(path, *options)[0] < 240).mean() for options in ([], ["-V", "draft=1"]))
    assert draft > plain + 0.01
    assert b'class="draft"' in export.document(path, "html", draft=True)
    found = parts(export.document(path, "docx", draft=True))
    assert "DRAFT" in found["word/header1.xml"] and "headerReference" in found["word/document.xml"]


@pytest.mark.parametrize("form", ["{}", "`{}`", "**{}**", "$\\text{{{}}}$", "```\n{}\n```"])
def test_chinese_is_drawn_and_not_as_boxes(tmp_path, form):
    """Two characters hold ink and differ; boxes would be the same."""
    left, right = (pages(trial(tmp_path, form.format(han)), ppi=150)[0][:, 130:200] < 128 for han in "红豆")
    assert left.sum() > 50 and right.sum() > 50 and (left != right).sum() > 50


@pytest.mark.parametrize(
    "text, said",
    [
        ("![x](figures/04_gone.png)", r"figures/04_gone.png is missing: `git checkout figures/04_gone.png`"),
        ("![x](https://example.com/x.png)", "lies in the network: save the picture"),
        ("<details>\n\ntext\n\n</details>", "Word and PDF would leave out the HTML <details>"),
        (r"$\nosuchmacro{1}$", r"\\nosuchmacro"),
        ("a sloth \U0001f9a5", r"fonts lack \U0001f9a5 \(U\+1F9A5\)"),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        export.document(trial(tmp_path, text), "html" if "$" in text else "pdf")


def test_what_results_hold_is_shown_on_any_machine(tmp_path):
    """A processor's name as long as they come, in one word or many, and letters of a model that no font has."""
    names = ["Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, " * 3 + "2 threads", "X" * 120]
    rows = [[number, "a model", "full", "0, 1, 2", name, "2026-11-23"] for number, name in enumerate(names)]
    header = ["notebook", "base model", "profile", "seeds", "machine", "date"]
    table = f"<!-- begin all.provenance -->\n\n{markdown_table(header, rows, 6)}\n\n<!-- end all.provenance -->\n\n"
    assert "-" * 60 not in table, "a rule as long as a name would leave the others no room"
    path = trial(tmp_path, table + "It wrote <!--= 03.x -->a sloth \U0001f9a5<!--/-->.\n")
    assert "a sloth (U+1F9A5)" in export.drawable(path.read_text("utf-8"))
    assert export.document(path, "pdf").startswith(b"%PDF") and fits(*pages(path, ppi=100))
    assert "X" * 120 in words(export.document(path, "html").decode())
    body = parts(export.document(path, "docx"))["word/document.xml"]
    widths = [int(w) for w in re.findall(r'<w:gridCol w:w="(\d+)"', body)]
    assert sum(widths) < 9_300 and min(widths) > 300  # twentieths of a point: of A4 without its margins


def held(path):
    raise PermissionError(f"{path.name} is open")


def test_export_writes_everything_into_build_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "document", lambda source, form, **options: form.encode())
    done = export.export(root=project(tmp_path, git=False))
    assert done == [tmp_path / "build" / name for name in ("report.html", "report.docx", "report.pdf")]
    assert capsys.readouterr().out.count(" MB\n") == len(done)
    with monkeypatch.context() as word, pytest.raises(PermissionError, match=r"report\.docx is open"):
        word.setattr(export, "write_bytes", lambda path, data: path.suffix == ".docx" and held(path))
        export.export(["html", "docx", "pdf"], root=tmp_path)
    assert re.findall(r"report\.\w+", capsys.readouterr().out) == ["report.html", "report.pdf"]
    assert export.export(["PDF"], midterm=True, root=tmp_path) == [tmp_path / "build/readme.pdf"]
    with pytest.raises(ValueError, match="Nothing is exported as 'doc': choose one of html, docx"):
        export.export(["doc"], root=tmp_path)
    (tmp_path / "report.md").unlink()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"report.md is missing: get it back with `git"):
        export.export(["html"], root=tmp_path)
