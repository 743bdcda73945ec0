"""`python -m lib report`: fill report.md and README.md from data/results, or check them.

People write the prose. Four marks, named after a notebook's number and what it handed over (lib.results.Results):
`<!--= 03.name -->text<!--/-->` holds a value; `<!-- begin 03.name -->` ... `<!-- end 03.name -->` a table or a figure
with its caption, which is numbered by its order, `own.name` around the caption of one that a person wrote;
`<!--# 03.name -->Table 2<!--/-->` refers to that number;
`<!--? 03.claim -->` stands before a sentence that is true only while the claim holds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lib import profile
from lib.results import markdown_table, write_bytes

FILES = ("README.md", "report.md")
MARK = re.compile(
    r"<!--= (?P<value>[\w-]+\.\S+) -->(?P<text>(?:(?!<!--)[^\n])*)<!--/-->"
    r"|<!-- begin (?P<block>(?!own\.)[\w-]+\.\S+) -->(?P<body>.*?)<!-- end (?P=block) -->"
    r"|<!--\? (?P<claim>[\w-]+\.[^\n>]+?) -->"
    r"|<!--# (?P<number>[\w-]+\.\S+) -->[^<\n]*<!--/-->"
    r"|(?m:^)(?P<caption>Table(?: \d+\.|:) )",  # of a table that a person wrote
    re.DOTALL,
)
OWN = re.compile(r"<!-- begin (own\.\S+) -->(.*?)<!-- end \1 -->", re.DOTALL)
PERCENT = re.compile(r"(?<=\d)%(?= *\||$)", re.MULTILINE)  # of a value or a cell; prose has "95 %" as well
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
# of a figure and a table, as a notebook hands it over or numbered
CAPTION = rf"(?s:{FENCED.pattern})|^!\[(.*)\]\((figures/\S+)\)(?:\n\nFigure \d+\. (.*))?$|^Table(?: \d+\.|:) "
CAPTION = re.compile(CAPTION, re.MULTILINE)
FIGURE = re.compile(r"!\[[^\]]*\]\((figures/[^)\s]+)\)")
REFERENCE = re.compile(r"`((?:lib|tests|notebooks|data)/[\w./]+)(?:::(\w+))?`|`(lib(?:\.\w+)+)`|\]\(([\w/]+/[\w./]+)")
FILLED_BY_A_MACHINE = ("data/private", "data/runs", "data/models", "data/mirror", "data/results", "build/")


def answers(root: Path) -> dict[str, dict]:
    """{"values", "tables", "claims"}: "NN.name" -> what the results files below `root` hand over, and the block
    `all.provenance`. Raises ValueError for a damaged file."""
    found: dict[str, dict] = {"values": {}, "tables": {}, "claims": {}}
    origins = []
    for path in sorted((root / "data" / "results").glob("[0-9][0-9]_*.json")):
        number = path.stem[:2]
        if not re.fullmatch(r"\w+", path.stem, re.ASCII):
            continue  # OneDrive's copy after a conflict, or a person's
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            made = results["provenance"]
            seeds = ", ".join(map(str, made["seeds"])) or "-"
            later, where = made.get("tables_made", {}).values(), f"{made['device']}, {made['created'][:10]}"
            devices = "; ".join(sorted({t["device"].rpartition(", ")[0] or t["device"] for t in later}))
            anew = f"{len(later)}, last {max(t['created'] for t in later)[:10]} ({devices})" if later else "-"
            origins.append([number, made["base_model"] or "random weights", made["profile"], seeds, where, anew])
            for kind, named in results.get("report", {}).items():
                spaced = named if kind == "claims" else {name: PERCENT.sub(" %", text) for name, text in named.items()}
                found[kind] |= {f"{number}.{name}": answer for name, answer in spaced.items()}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): run `python -m lib run {number}` again.") from error
    header = ["notebook", "base model", "profile", "seeds", "machine, date", "tables measured later"]
    table = re.sub(r"CPU, |\(R\)| Processor|(?<= 1 thread)s", "", markdown_table(header, origins, 6))
    text = "Table: The runs (`python -m lib run NN --profile full`); tables measured later add seeds or are anew."
    found["tables"]["all.provenance"] = f"{table}\n\n{text}"
    return found


def filled(text: str, found: dict[str, dict]) -> str:
    """`text` with every mark filled that has an answer; the others stay as they are."""

    def replace(m: re.Match) -> str:
        if m["value"] in found["values"]:
            return f"<!--= {m['value']} -->{found['values'][m['value']]}<!--/-->"
        if m["block"] in found["tables"]:
            return f"<!-- begin {m['block']} -->\n\n{found['tables'][m['block']]}\n\n<!-- end {m['block']} -->"
        return m[0]

    text = _numbered(MARK.sub(replace, text))
    label = labels(text)
    return MARK.sub(lambda m: f"<!--# {n} -->{label[n]}<!--/-->" if (n := m["number"]) in label else m[0], text)


def _numbered(text: str) -> str:
    """`text` with the captions of its figures and of its tables numbered in their order."""
    count = {"Figure": 0, "Table": 0}

    def caption(m: re.Match) -> str:
        if m[1]:  # code
            return m[0]
        kind = "Figure" if m[3] else "Table"
        count[kind] += 1
        label = f"{kind} {count[kind]}"
        return f"![{label}]({m[3]})\n\n{label}. {m[4] or m[2]}" if m[3] else f"{label}. "

    return CAPTION.sub(caption, text)


def labels(text: str) -> dict[str, str]:
    """Block -> "Figure 7" or "Table 2", of those with a caption."""
    blocks = [(m["block"], m["body"]) for m in MARK.finditer(text) if m["block"]] + OWN.findall(text)
    first = {block: re.search(r"^((?:Figure|Table) \d+)\. ", body, re.M) for block, body in blocks}
    return {block: m[1] for block, m in first.items() if m}


def fill(root: Path = profile.ROOT) -> list[str]:
    """Fill both files in place, each whole or not at all; returns what `check` still finds."""
    found = answers(root)
    for name in FILES:
        old = read(root / name)
        if (new := filled(old, found)) != old:
            write_bytes(root / name, new.encode())
    return check(root)


def check(root: Path = profile.ROOT, names: Sequence[str] = FILES) -> list[str]:
    """What is wrong with the files, a sentence each with its line: stale, unknown and broken marks, claims that no
    longer hold, typed numbers, missing figures, and places in the code that do not exist."""
    found, wrong = answers(root), []
    published = read(root / "report.md") if (root / "report.md").exists() else ""
    for name in names:
        text = read(root / name)
        faults = _marks(text, found) + places(text, root)
        faults += _typed_numbers(text, published, only_decimals=name == "README.md")
        wrong += [f"{name}, line {text.count(chr(10), 0, at) + 1}: {what}" for at, what in sorted(set(faults))]
    return wrong


def command(check_only: bool) -> bool:
    """Fill, or only check; print what is wrong, and return whether anything is."""
    wrong = check() if check_only else fill()
    print(*(wrong or ["report.md and README.md agree with data/results."]), sep="\n")
    return bool(wrong)


def read(path: Path) -> str:
    """A Markdown file's text. Raises FileNotFoundError or ValueError in a sentence."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: get it back with `git checkout {path.name}`.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None


def _marks(text: str, found: dict[str, dict]) -> list[tuple[int, str]]:
    wrong, new = [], filled(text, found)
    label = labels(new)
    for m, now in zip(MARK.finditer(text), MARK.finditer(new), strict=True):
        name = m["value"] or m["block"] or m["claim"] or m["number"] or "a caption"
        kind = "values" if m["value"] else "tables" if m["block"] else "claims" if m["claim"] else None
        if kind and name not in found[kind]:
            wrong.append((m.start(), f"no results file answers `{name}`: run notebook {name[:2]}, or rewrite it."))
        elif m["number"] and name not in label:
            wrong.append((m.start(), f"no figure or table `{name}` stands here: rewrite what refers to it."))
        elif m["claim"] and not found[kind][name]:
            wrong.append((m.start(), f"the claim `{name}` does not hold any more: rewrite the sentence behind it."))
        elif now[0] != m[0]:
            wrong.append((m.start(), f"`{name}` is not what data/results gives: run `python -m lib report`."))
    broken = re.finditer("<!-[^>\n]*>?|-->", blank(text, FENCED, MARK, OWN, CODE))
    wrong += [(m.start(), f"`{m[0]}` is a broken mark, or one without its end.") for m in broken]
    raw = "a line may not begin with a mark: Markdown would show what follows as raw text."
    return wrong + [(m.start(), raw) for m in re.finditer(r"^\s*(?:[-*>] +)*<!--[=?#]", text, re.MULTILINE)]


def places(text: str, root: Path) -> list[tuple[int, str]]:
    """Figures that are missing; files and names in the code that the text points to and that are not there."""
    wrong = []
    for m in REFERENCE.finditer(blank(text, FENCED)):
        path, name = m[1] or m[4] or "", m[2]
        if m[3]:  # lib.module.name, lib.room.module.Class.method
            path, names = "lib", m[3].split(".")[1:]
            while names and (root / path).is_dir():
                path = f"{path}/{names.pop(0)}"
            path, name = path if (root / path).is_dir() else f"{path}.py", names[0] if names else None
        defined = rf"^\s*(?:def|class) {name}\b|^{name}\b.* = "
        if path.startswith(FILLED_BY_A_MACHINE):
            continue
        if not (root / path).exists():
            wrong.append((m.start(), f"{path} is missing" + (": run its notebook." if "figures/" in path else ".")))
        elif name and not re.search(defined, (root / path).read_text(encoding="utf-8"), re.MULTILINE):
            wrong.append((m.start(), f"{path} has no `{name}`."))
    return wrong


# --- numbers that were typed where a mark should be

NUMBER = re.compile(r"(?<![A-Za-z0-9_./:])(?<![A-Za-z0-9]-)(?<!\d,)[-+−]?(\d+(?:,\d{3})*(?:\.\d+)*)([A-Za-z_]*)")
LISTED = re.compile(r"\*\*Published constants\.\*\*.*?(?=\n\n(?!-)|\Z)", re.DOTALL)
# free of marks: the title's block, the team's section, the sources
FREE = re.compile(r"\A# .*?^(?=## Abstract)|^(#+) [^\n]*(?:[Tt]eam|References|Sources).*?(?=^#|\Z)", re.S | re.M)
NO_RESULTS = (  # numbers that are no results, anywhere in running text
    re.compile(r"^(?:#+|Figure|Table) [\d.]+", re.MULTILINE),  # headings, captions
    re.compile(r"https?://[^\s)]+|\[\d\d\]\(notebooks/[^)]+\)"),
    re.compile(r"\b(?:1[89]|20)\d\d\b(?![.,]\d)"),  # years
    re.compile(r"\barXiv:\d{4}\.\d{4,5}"),
    re.compile(r"\b(?:[Ss]ections?|[Ee]xplorations?) \d(?:\.\d)?(?:(?:, | and | to )\d(?:\.\d)?)*"),
    re.compile(r"\b(?:[Nn]otebooks?|lib run) \d\d(?:(?:, | and | to | )\d\d)*"),
    re.compile(r"\b95 %"),  # the level of every interval
)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)


def blank(text: str, *patterns: re.Pattern) -> str:
    """`text` with what the patterns find turned to blanks; lines and places stay."""
    for pattern in patterns:
        text = pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    return text


def _typed_numbers(text: str, published: str, only_decimals: bool) -> list[tuple[int, str]]:
    """Numbers outside code and marks that are neither years, sections, notebooks, nor among the constants that the
    report's sources list. Formulas hold integers up to 10 as well. README, with its times, is asked for decimals."""
    listed = LISTED.search(published)
    allowed = {m[1] + m[2] for m in NUMBER.finditer(listed[0])} if listed else set()
    math = [m.span() for m in MATH.finditer(text)]
    wrong = []
    for m in NUMBER.finditer(blank(text, FENCED, MARK, CODE, FREE, FIGURE, *NO_RESULTS)):
        small = m[1].isdigit() and int(m[1]) <= 10 and any(start <= m.start() < end for start, end in math)
        if small or m[1] + m[2] in allowed or m[2].startswith("_") or (only_decimals and "." not in m[1]):
            continue
        ways = "fill it in by a mark, or list it with its source under the report's “Published constants”."
        wrong.append((m.start(), f"{m[0]} was typed and is no year, section or published constant: {ways}"))
    return wrong
