"""E2E NLG: the task "e2e", whether a text says what its meaning representation asks for, and the measures of its rows.

The slot check is by rules, the measure that of Dušek et al. 2019, arXiv:1911.03905; the patterns are ours, written on
train.txt and valid.txt. Neither they nor people are perfect: over the human references the error rate is 8.6 % of the
slots on train, 7.1 % on valid and 8.2 % on test; a model's rate stands beside that."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from huggingface_hub.errors import EntryNotFoundError

from lib import profile, tasks, texts
from lib.hub import Unavailable, hub_file, hub_trouble, outside

HUB, REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # the hub's names
VENUES = (profile.DATA / "e2e_venues.txt").read_text(encoding="utf-8").splitlines()  # all that the three splits name
# Between an adjective and its noun: up to three words of the same clause, no other adjective among them
_STOP = r"(?:pric|cost|expens|rat|review|custom|and|but|with|that|which|is|are|has|low|poor|high|good|great|average|"
_STOP += r"mid|moderate|fair|place|food|pub|coffee|restaurant)"
_GAP = rf"(?:[^\w.;,]+(?!{_STOP})\w+){{0,3}}?[^\w.;,]+"
_LINK = r"(?:[^\w.;,]+(?:is|are|was|of|a|an|the|ranges?|ratings?|quite|very|rather|fairly|at|in|from|be|been|it|as|has|"
_LINK += r"being|customers?|seem|tend|to)){0,4}[^\w.;,]+"
_PRICE = r"(?:pric\w*|costs?|expens\w*)"
_RATE = r"(?:rat(?:ed?|ings?|es)|ranked|reviews?|reviewed|scores?|customers?|satisfaction|feedback)"
_UNDER = r"(?:less|lower|cheaper|under|below|up to|within|beneath|not more|no more|maximum)"
_OVER = r"(?:more|over|above|starts?|starting|from|at least|exceed\w*|higher|greater|upwards?|minimum)"


def _about(noun: str, adjectives: str) -> str:
    return rf"\b(?:{adjectives}){_GAP}{noun}|{noun}{_LINK}(?:{adjectives})\b"


# slot -> value -> pattern. The verbal and the numeric scale of a slot share a value: people write "low rating" for 1
# out of 5 and "cheap" for less than £ 20, and mean the same by it.
PATTERNS = {
    "Type": {
        "pub": r"\bpubs?\b|\bpublic house|\btavern",
        "coffee shop": r"\bcoffee|\bcafes?\b|\btea ?room",
        "restaurant": r"\brestaurants?\b|\beater(?:y|ies)\b|\bdiner\b|\bdining|\bbistro\b",
    },
    "food": {
        "English": r"\benglish|\bbritish",
        "Japanese": r"\bjapan\w*|\bsushi",
        "French": r"\bfrench|\bfrance",
        "Italian": r"\bital(?:y|ian)\w*|\bpasta|\bspaghetti|\bpizza",
        "Indian": r"\bindian?\b|\bcurr(?:y|ies)",
        "Chinese": r"\bchin(?:ese|a)\b",
        "Fast food": r"\bfast\W*foods?",
    },
    "price": {
        "low": r"\bcheap\w*|\binexpensive|\baffordab\w*|\beconomical|\blow\W+cost|"
        rf"{_UNDER}(?:\W+(?:than|of))?\W+(?:20|twenty)|\b20\W+(?:pounds\W+)?or (?:less|under|below)|"
        + _about(_PRICE, r"low|lower|lowest|lowly"),
        "mid": r"20(?:\W+pounds)?\W+(?:(?:to|and|or|through)\W+)?(?:pounds\W+)?25|"
        r"\bmid\w*\W+(?:rang|pric|level)\w*|\bmoderate\w*\W+(?:rang|pric|cost)\w*|"
        + _about(_PRICE, r"average|medium|moderate\w*|mid|reasonabl\w*"),
        "high": rf"{_OVER}(?:\W+(?:than|of|at|from|around|about))*\W+(?:30|thirty)|"
        r"\b30\W+(?:pounds\W+)?(?:or (?:more|above|over)|and (?:up|over|above|more)|plus|upwards)|\b30 ?\+|"
        r"(?<!in)(?<!not )\bexpensive|\bpric(?:ey|y|ier)\b|\bcostly|\boverpriced|"
        + _about(_PRICE, r"high|higher|highly"),
    },
    "customer rating": {
        "low": r"\b(?:1|one)\W+star|" + _about(_RATE, r"low|lower|lowest|lowly|poor|poorly|bad|badly"),
        "mid": r"\b(?:3|three)\W+star|" + _about(_RATE, r"average|averagely|mediocre|moderate\w*"),
        "high": r"\b(?:5|five)\W+star|" + _about(_RATE, r"high|higher|highest|highly|great|good|well"),
    },
    "area": {
        "riverside": r"\briver\w*|\bwaterfront|\bwaterside",
        "city centre": r"\b(?:city|town)\W*(?:centre|center)|\b(?:centre|center) of|\bdowntown",
    },
}
# Enough to say a slot that the input has; too vague to contradict it, or to be an addition
VAGUE = {
    "Type": {"pub": r"\bbars?\b", "restaurant": r"\bplace to eat|\bserv(?:es?|ing)\b"},
    "food": {
        "English": r"\bfish and chips|\btraditional .{0,12}(?:food|fare|breakfast)",
        "French": r"\bwines?\b.*\bcheese|\bcheeses?\b.*\bwine",
        "Fast food": r"\bburgers?\b|\bfries\b|\bjunk food|\bsnacks?\b",
        "Chinese": r"\bnoodles?\b",
    },
    "price": {
        "low": r"\bbudget|\bbargain|\b(?:reasonabl|modest|good|great|small|well|fair)\w*\W+(?:pric|cost)\w*|"
        r"\b(?:20|twenty)\b(?!.*25)",
        "mid": r"\bmiddle|\b(?:reasonabl|fair|decent|modest|standard|normal)\w*\b|\bmoderat\w*|\baverage",
        "high": r"\bhigh\W+(?:end|class)|\bupscale|\bupmarket|\bspendy|\b30\b|\bthirty|"
        r"\bup(?:per)?\W+pric|\bfine dining",
    },
    "customer rating": {
        "low": r"\bpoor|\bbad\b|\bterrible|\bnegative|\bnot recommended|\blow\b",
        "mid": r"\bdecent|\baverage|\bmedium|\bfair|\bok(?:ay)?\b|\b(?:3|three)\b",
        "high": r"\bexcellent|\bperfect|\bgreat|\bpopular|\brecommend\w*|\bpraised|\bhigh quality|\btop\b|\bpositive|"
        r"\bbest\b|\b(?:5|five)\b",
    },
    "area": {"riverside": r"\bwater\b", "city centre": r"\bcit(?:y|ies)\b|\bcentral\w*\b|\b(?:centre|center)\b"},
}
_PRICES = {"cheap": "low", "less than £ 20": "low", "moderate": "mid", "£ 20 - 25": "mid", "more than £ 30": "high"}
_RATINGS = {"1 out of 5": "low", "average": "mid", "3 out of 5": "mid", "5 out of 5": "high"}
SCALES = {"price": _PRICES, "customer rating": _RATINGS}  # "low" and "high" are what they are
_FAMILY = re.compile(r"\bfamil\w*|\bkids?\b|\bchild\w*|\byoungsters?\b|\ball age|\b(?:infants|toddlers)\b")
_NOT = r"\bn(?:o|ot(?! far)|on|ever|either|or)\b|n ?'? ?t\b(?<= t|'t)|\bun(?!der|til|ique|ion|less)\w+|\bwithout|"
_NOT += r"\bdiscourag\w*|\bprohibit\w*|\bavoid|\binappropriate|\bforbid\w*|\bbann?\w*|\bexclud\w*|\blacks?\b|"
_NOT += r"\bcannot|\bcant\b|\bleave\b"
_BEFORE = re.compile(rf"(?:{_NOT})(?:[^\w.;,]+(?!but\b)[\w']+){{0,6}}[^\w.;,]*$")
# "is not (at all) cheap", "doesn't have a high rating"; "not only cheap" and "no doubt cheap" are none
_DENIED = r"(?:\bnot|n ?' ?t|\bnever|\bno|\bwithout|\bneither|\bnor|\bhardly|\bfar from|\banything but)"
_DENIED += r"(?:[^\w.;,]+(?:an?|the|in|at|of|all|be|been|have|has|get|that|so|too|very|really|considered)\b)*[^\w.;,]+$"
_AFTER = re.compile(rf"^(?:[^\w.;,]+(?!and\b|but\b|with\b)[\w']+){{0,5}}?[^\w.;,]*(?:{_NOT})")
_ADULT = re.compile(r"\badults?\b|\bmature\b|\bgrown\W?ups?\b|\bover 18")
_GOOD = r"(?:\W+(?:get|have|has|a|an|the|very|so|too|receive|been))*\W+(?:good|great|well|highly|high)\b"
_REWRITES = [  # phrases that the patterns would misread
    (r"\b(\d|one|two|three|four|five)\W+(?:(?:out|our|of|in)\W+|/\W*)+(?:5|five)\b", r"\1 star"),
    (r"(?:less|lower|below|cheaper)(?:\W+than)?\W+(?:the\W+)?average", "low"),
    (r"(?:more|higher|above)(?:\W+than)?\W+(?:the\W+)?average", "high"),
    (rf"(?:{_NOT}){_GOOD}(?=\W+(?:\w+\W+)?{_RATE})", "poor"),
    (r"\b(?:north|outside|outskirts|edge|away)\W+(?:\w+\W+){0,2}?(?:city|town)(?:\W*(?:centre|center))?", ""),
]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.casefold().replace("é", "e").replace("’", "'"))


def _venue(name: str) -> str:
    return re.sub(r"\W+", " ", _plain(name).strip().removeprefix("the "))


def mentioned(text: str, venues: Iterable[str]) -> tuple[dict, dict, set]:
    """What `text` states: slot -> its values; the same of vague wordings; the venues met, of E2E's own and `venues`."""
    known = sorted({_venue(v) for v in (*VENUES, *venues)}, key=len, reverse=True)
    text = _plain(text)
    pattern = re.compile(r"\b(?:" + "|".join(v.replace(" ", r"\W+") for v in known) + r")\b")
    rest = pattern.sub("venue", text)  # "Raja Indian Cuisine" serves no Indian food by its name
    for old, new in _REWRITES:
        rest = re.sub(old, new, rest)
    stated, vague = (
        {slot: {value for value, p in values.items() if re.search(p, rest)} for slot, values in patterns.items()}
        for patterns in (PATTERNS, VAGUE)
    )
    for slot in SCALES:
        for value, p in PATTERNS[slot].items():
            found = [(m[0], re.search(_DENIED, rest[: m.start()])) for m in re.finditer(p, rest)]
            denied = [word for word, no in found if no and not re.search("0|twenty|thirty", word)]  # "no less than 20"
            if denied:  # another value is meant
                stated[slot] -= {value} if len(denied) == len(found) else set()
                stated[slot].add(f"not {value}")
                vague[slot] |= {*PATTERNS[slot]} - {value}
    near = [(rest[: m.start()], rest[m.end() :]) for m in _FAMILY.finditer(rest)]
    negated = [bool(_BEFORE.search(left) or _AFTER.search(right)) for left, right in near]
    # "not for families; couples without children like it": one denial decides
    no = any(negated) or (not negated and bool(_ADULT.search(rest)))
    stated["family friendly"] = {"no"} if no else {"yes"} if negated else set()
    return stated, vague, {_venue(m) for m in pattern.findall(text)}


def slot_check(meaning: str, text: str) -> dict[str, int]:
    """Errors of one text: missing (a slot is not said), wrong (another value of it is), added (a slot, or a second
    value of one, that the input lacks), slots (in the input, `name : A | Type : pub ||`, else ValueError)."""
    parts = (part.strip().split(" : ", 1) for part in meaning.strip().removesuffix("||").split(" | "))
    slots = {slot: value.strip() for slot, value in parts}
    count = len(slots)
    places = {_venue(slots.pop(k)) for k in ("name", "near") if k in slots}
    stated, vague, venues = mentioned(text, places)
    lost, strange = len(places - venues), len(venues - places)
    wrong = min(lost, strange)  # one venue in place of another
    missing, added = lost - wrong, strange - wrong
    for slot in stated.keys() | slots.keys():
        value = slots.get(slot)
        wanted = SCALES.get(slot, {}).get(value, value)
        # "restaurant" is E2E's word for any place: it contradicts nothing
        others = stated.get(slot, set()) - {wanted, "restaurant"}
        if value:  # what is denied contradicts itself alone
            others -= {f"not {v}" for v in PATTERNS.get(slot, ()) if v != wanted}
        if value is None or wanted in stated.get(slot, set()):
            added += bool(others)
        elif others:
            wrong += 1
        elif wanted not in vague.get(slot, set()):
            missing += 1
    return {"missing": missing, "wrong": wrong, "added": added, "slots": count}


def slot_errors(meanings: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """Totals; SER = (missing + wrong + added) / slots of the inputs; `perfect`: the share of texts without an error."""
    if not outputs or len(meanings) != len(outputs):
        raise ValueError(f"{len(meanings)} inputs and {len(outputs)} texts: pass one text per input.")
    checks = pd.DataFrame([slot_check(m, t) for m, t in zip(meanings, outputs, strict=True)])
    errors, totals = checks[["missing", "wrong", "added"]].sum(axis=1), checks.sum().to_dict()
    return {**totals, "ser": float(errors.sum() / totals["slots"]), "perfect": float((errors == 0).mean())}


def checks(rows: Sequence[Mapping], outputs: Sequence[str]) -> dict[str, float]:
    """E2E's own measures of one text per row: NIST and the slot errors."""
    found = slot_errors([row["prompt"] for row in rows], outputs)
    return {"nist": texts.nist(outputs, [list(row["references"]) for row in rows]), **found}


def load() -> tasks.Task:
    """E2E NLG (Novikova et al. 2017, arXiv:1706.09254): train has one row per text; validation and test have one per
    distinct meaning representation, all its texts as references, in file order.

    The files (`name : X | Type : pub||text`, tokenised by spaCy) are those of the LoRA paper. Without them the hub's
    rows serve, in the same form but untokenised: scores do not compare with published ones; `source` tells which."""
    try:
        folder = outside("e2e")
    except Unavailable:
        tables, source = _from_hub(), f"https://huggingface.co/datasets/{HUB}"
        digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()
    else:
        paths = [folder / f"{name}.txt" for name in ("train", "valid", "test")]
        lines = [p.read_text("utf-8").splitlines() for p in paths]
        tables = [[[part.strip() for part in line.partition("||")[::2]] for line in part] for part in lines]
        source, digest = str(folder), hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()
    return tasks.ordered("e2e", map(_split, tasks.SPLITS, tables), digest, source)


def meaning_of(raw: str) -> str:
    """`name[X], eatType[pub], priceRange[£20-25]` -> `name : X | Type : pub | price : £ 20 - 25`."""
    fields = dict(field.split("[", 1) for field in raw.strip().removesuffix("]").split("], "))
    if "priceRange" in fields:
        fields["priceRange"] = fields["priceRange"].replace("£", "£ ").replace("-", " - ")
    return " | ".join(f"{FIELDS.get(key, key)} : {value}" for key, value in fields.items())


def _from_hub() -> list[list[list[str]]]:
    at = {"revision": REVISION, "repo_type": "dataset"}
    files = [f"default/{split}/0000.parquet" for split in tasks.SPLITS]
    trouble = hub_trouble(HUB, files[0], **at)
    try:  # without the hub an earlier download may still be in its cache
        files = [hub_file(HUB, f, local_files_only=bool(trouble), **at) for f in files]
    except (Unavailable, EntryNotFoundError) as error:
        where = "E2E NLG is not in $DATA_MIRROR/e2e or data/mirror/e2e, and the hub does not give it"
        ways = "put train.txt, valid.txt and test.txt into data/mirror/e2e, or add --mirror https://hf-mirror.com"
        raise Unavailable(f"{where} ({trouble or error}): {ways}.") from error
    tables = (pd.read_parquet(f)[["meaning_representation", "human_reference"]] for f in files)
    return [[[meaning_of(m), t.strip()] for m, t in table.itertuples(index=False)] for table in tables]


def _split(split: str, rows: Iterable[list[str]]) -> list[dict]:
    merged = [(meaning, [text]) for meaning, text in rows]
    if split != "train":
        frame = pd.DataFrame(rows).drop_duplicates()
        merged = [(meaning, texts.tolist()) for meaning, texts in frame.groupby(0, sort=False)[1]]
    rows = [{"prompt": f"{m} ||", "target": f" {t[0]}", "references": t, "group": m} for m, t in merged]
    return [{"id": f"e2e-{split}-{i:05d}", **row} for i, row in enumerate(rows)]
