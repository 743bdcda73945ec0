"""What the exports look like: a typst template, a style sheet for HTML, and Word's styles.

Serif text with the Noto CJK fonts of the wheel mplfonts behind it; tables and code wrap instead of
running off the page.
"""

import io
import zipfile
from html import escape

# pandoc fills $...$; fonts later in a list serve what the first ones lack
TYPST = r"""
#let horizontalrule = line(length: 40%, stroke: 0.5pt + gray)
#let body-fonts = ("Libertinus Serif", "Noto Serif CJK SC", "Noto Sans CJK SC", "DejaVu Sans")
#let code-fonts = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "DejaVu Sans")
#let breakable(it, longest: 24) = {  // a long word may break behind a mark, a piece as long anywhere
  show regex("\S{" + str(longest) + ",}"): word => word.text.replace(
    regex("[^/_.,:=&?-]{" + str(longest) + ",}"), piece => piece.text.clusters().join(sym.zws),
  ).replace(regex("[/_.,:=&?-]"), mark => mark.text + sym.zws)
  it
}
#set document(title: [$title$], date: none)
#set page(paper: "a4", margin: (x: 2.3cm, y: 2.4cm),
  footer: context align(center, text(8.5pt, gray.darken(40%), counter(page).display("1 / 1", both: true)))
  $if(draft)$, background: rotate(-40deg, text(110pt, luma(225), weight: "bold")[DRAFT])$endif$)
#set text(font: body-fonts, size: 10.5pt, lang: "$language$", hyphenate: true)
#set par(justify: true, leading: 0.68em, spacing: 1.05em)
#set smartquote(enabled: false)
#show math.equation: set text(font: ("New Computer Modern Math", "Noto Serif CJK SC", "Noto Sans CJK SC"))
#show raw: set text(font: code-fonts)
#show raw.where(block: true): it => {
  set text(8pt, hyphenate: false)
  set par(justify: false)
  block(width: 100%, fill: luma(246), inset: 7pt, radius: 2pt, breakable(it))
}
#show raw.where(block: false): it => {
  set text(0.92em, hyphenate: false)
  breakable(it)
}
#show link: it => if type(it.dest) == str { text(rgb("#004488"), it) } else { it }
#show heading: set par(justify: false)
#show heading: set block(above: 1.5em, below: 0.8em)
#show heading.where(level: 1): set text(14pt)
#show heading.where(level: 2): set text(11.5pt)
#show heading.where(level: 3): set text(10.5pt)
#let heavier(it) = {  // the wheel has no bold Chinese: a thin outline stands in
  show regex("[\p{Han}，。、；：！？（）《》]+"): han => text(stroke: 0.025em, han)
  it
}
#show heading: heavier
#show strong: heavier
#set figure(numbering: none, supplement: none)
#show figure.caption: it => block(width: 92%, text(9pt, it.body))
#show figure.where(kind: image): set block(above: 1.4em, below: 1.4em)
#show figure.where(kind: table): set block(breakable: false, above: 1.2em, below: 1.2em)
#set image(fit: "contain")
#set table(inset: (x: 4.5pt, y: 3.2pt), stroke: none)
#set table.hline(stroke: 0.5pt)
#show table: it => {
  set text(8.5pt)
  set par(justify: false, leading: 0.5em)
  show raw: breakable.with(longest: 10)
  block(stroke: (y: 0.7pt), it)
}
#show terms.item: it => block[*#it.term* \ #pad(left: 1.5em, it.description)]
#show quote.where(block: true): it => pad(left: 1.2em, block(stroke: (left: 1.5pt + luma(200)), inset: (left: 8pt, y: 2pt), it.body))

#align(center, block(below: 1.6em, par(justify: false, heavier(text(18pt, weight: "bold", hyphenate: false)[$title$]))))
$body$
"""  # noqa: E501

CSS = """
:root { color-scheme: light; }
body { max-width: 47rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: white; line-height: 1.5;
  font-family: Georgia, "Noto Serif CJK SC", "Source Han Serif SC", "Songti SC", SimSun, serif; overflow-wrap: break-word; }
h1, h2, h3, h4 { line-height: 1.25; margin: 1.8em 0 .6em; }
h1.title { font-size: 1.9rem; margin-top: 0; } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; } h3 { font-size: 1.05rem; }
a { color: #004488; }
nav { background: #f6f6f6; padding: .1rem 1rem; font-size: .92rem; }
img, svg { max-width: 100%; height: auto; }
figure { margin: 1.6rem 0; text-align: center; } figcaption { font-size: .9rem; text-align: left; }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1rem 0; font-size: .88rem;
  border-block: 1.5px solid #222; width: fit-content; max-width: 100%; }
caption { caption-side: bottom; text-align: left; padding-top: .4rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; } thead th { border-bottom: 1px solid #222; }
pre { background: #f6f6f6; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.35; }
pre, code { font-family: Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; font-size: .86rem; }
pre code, pre > code.sourceCode { white-space: pre-wrap; overflow-wrap: anywhere; } td code { overflow-wrap: anywhere; }
div.sourceCode { margin: 1em 0; }
math[display="block"] { overflow-x: auto; overflow-y: hidden; max-width: 100%; }
blockquote { margin-left: 0; padding-left: 1rem; border-left: 3px solid #ccc; }
.output pre { background: none; border-left: 3px solid #6699CC; padding-top: .1rem; padding-bottom: .1rem; }
.draft { position: fixed; top: 0; right: 0; padding: .2rem 1rem; background: #994455; color: white; font-family: sans-serif; }
@media print { body { max-width: none; margin: 0; } table { display: table; } nav { display: none; } }
"""  # noqa: E501

DRAFT_TEXT = "DRAFT, not for submission"


def html_head() -> str:
    return f"<style>{CSS}</style>"


def html_draft() -> str:
    return f'<div class="draft">{escape(DRAFT_TEXT)}</div>'


# Word measures pages in twentieths of a point, letters in half points
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
MAIN = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml"
PAGE = '<w:fldSimple w:instr=" PAGE "><w:r><w:t>1</w:t></w:r></w:fldSimple>'
A4 = (
    '<w:pgSz w:w="11906" w:h="16838"/><w:pgMar w:top="1360" w:right="1300" w:bottom="1360" w:left="1300" '
    'w:header="700" w:footer="700" w:gutter="0"/>'
)
# every Word and WPS has these, or sets another font of the same kind; pandoc's Aptos came with Word of 2023
LATIN, EAST_ASIAN = "Times New Roman", "SimSun"
TABLE_TEXT = "Table Text"
TABLE_STYLE = (  # 8.5 pt
    f'<w:style w:type="paragraph" w:customStyle="1" w:styleId="{TABLE_TEXT.replace(" ", "")}">'
    f'<w:name w:val="{TABLE_TEXT}" /><w:basedOn w:val="Compact" />'
    '<w:rPr><w:sz w:val="17" /><w:szCs w:val="17" /></w:rPr></w:style>'
)


def word_styles(default: bytes, draft: bool) -> bytes:
    """pandoc's reference.docx on A4 with page numbers, fonts that are everywhere, rules around tables, and a style for
    their text."""
    with zipfile.ZipFile(io.BytesIO(default)) as source:
        parts = {name: source.read(name) for name in source.namelist()}

    def edit(name: str, old: str, new: str) -> None:
        text = parts[name].decode("utf-8")
        if old not in text:
            raise RuntimeError(f"pandoc's {name} is another: `pip install -r requirements.txt`.")
        parts[name] = text.replace(old, new).encode("utf-8")

    def add(kind: str, tag: str, content: str) -> None:
        file, name = f"{kind}1.xml", f"rId9{kind}"
        text = f'<w:p><w:pPr><w:jc w:val="center"/></w:pPr>{content}</w:p>'
        parts[f"word/{file}"] = f'<w:{tag} xmlns:w="{MAIN}">{text}</w:{tag}>'.encode()
        known = f'<Override PartName="/word/{file}" ContentType="{WORD}.{kind}+xml"/>'
        edit("[Content_Types].xml", "</Types>", f"{known}</Types>")
        relation = f'<Relationship Type="{OFFICE}/{kind}" Id="{name}" Target="{file}"/>'
        edit("word/_rels/document.xml.rels", "</Relationships>", f"{relation}</Relationships>")
        used = f'<w:{kind}Reference xmlns:r="{OFFICE}" w:type="default" r:id="{name}"/>'
        edit("word/document.xml", "<w:sectPr>", f"<w:sectPr>{used}")

    styles, chinese = "word/styles.xml", f'w:eastAsia="{EAST_ASIAN}"'
    edit(styles, 'w:eastAsiaTheme="minorEastAsia"', chinese)
    edit(styles, 'w:eastAsiaTheme="majorEastAsia"', chinese)
    edit(styles, 'w:hAnsi="Consolas"', f'w:hAnsi="Consolas" {chinese}')
    edit(styles, '<w:sz w:val="24" />', '<w:sz w:val="21" />')
    edit(styles, '<w:sz w:val="22" />\n    </w:rPr>', '<w:sz w:val="19" />\n    </w:rPr>')  # code
    edit(styles, "</w:styles>", f"{TABLE_STYLE}</w:styles>")
    for aptos in ("Aptos Display", "Aptos"):
        edit("word/theme/theme1.xml", f'<a:latin typeface="{aptos}"', f'<a:latin typeface="{LATIN}"')
    rule = '<w:{} w:val="single" w:sz="8" w:color="222222"/>'
    rules = f"<w:tblBorders>{rule.format('top')}{rule.format('bottom')}</w:tblBorders>"
    indent = '<w:tblInd w:w="0" w:type="dxa" />'
    edit(styles, indent, indent + rules)
    for side in ("left", "right"):
        edit(styles, f'<w:{side} w:w="108"', f'<w:{side} w:w="60"')
    edit(styles, "</w:tblPr>\n    <w:tblStylePr", "</w:tblPr>\n    <w:trPr><w:cantSplit /></w:trPr>\n    <w:tblStylePr")
    edit("word/document.xml", "</w:footnotePr>", f"</w:footnotePr>{A4}")
    add("footer", "ftr", PAGE)
    if draft:
        add("header", "hdr", f"<w:r><w:t>{DRAFT_TEXT}</w:t></w:r>")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in parts.items():
            target.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()
