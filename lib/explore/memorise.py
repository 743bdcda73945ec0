"""Does a model remember what it was trained on? Canaries, their exposure, and verbatim continuation (notebook 08).

A canary is an invented secret in a fixed form, inserted into the training text a known number of times (Carlini et al.
2019, arXiv:1802.08232). Its exposure in bits is log2 |R| - log2 rank: rank 1 is the likeliest of all |R| = 10,000 codes
of the form. A code never seen has a uniform rank: its exposure is exponential, log2 e = 1.44 bits in the mean."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lib import profile, tasks
from lib.explore.private import deduplicate
from lib.generate import generate
from lib.metrics import float32_logits

REPETITIONS = (1, 2, 4, 8, 16, 32, 64)
# Digits and letters take turns: byte-level encodings split between the two, so that each symbol is one token, and all
# codes with a common beginning share its computation. Vowels are left out: no words.
SLOTS = ("0123456789", "BCDFGHJKLM", "0123456789", "BCDFGHJKLM")
CANDIDATES = math.prod(map(len, SLOTS))
UNSEEN = math.log2(math.e)  # expected exposure in bits of a code without any trace in the model
PROMPT, FORM = "Memo\n", "The {thing} code of {name} is #"
THINGS = """locker cellar bicycle garage attic boathouse laptop printer greenhouse studio workshop kiln archive
telescope pantry stable"""
FIRST = """Mira Tobias Ines Jonas Rosa Grace Mark Yuki Lena Omar Vera Paul Nadia Hugo Clara Felix Irma Sven Dora Luis
Petra Karim Edith Bruno Tessa Anton Marta Oscar Wanda Emil Sonia Victor Alma Boris Celia Dario"""
LAST = """Holm Enk Carvo Adebri Penhal Will Stoll Tanabe Orme Quist Baro Lund Fenn Dray Moss Kell Varga Thorn Pike Rusk
Alder Crane Nord Yarrow Finch Hale Ivers Jarvis Knoll Larch Mead Noble Osgood Prior Quill Reeve"""


class Canary(NamedTuple):
    id: str
    repetitions: int  # 0: a control, never inserted
    prefix: str  # of the document after PROMPT; what an attacker knows
    secret: str

    def row(self, copy: int = 0) -> dict:
        """The canary as a document of a task."""
        target = f"{self.prefix}{self.secret}."
        return {"id": f"{self.id}-{copy}", "prompt": PROMPT, "target": target, "references": [target], "group": self.id}


def canaries(seed: int, per_count: int, controls: int, counts: Sequence[int] = REPETITIONS) -> list[Canary]:
    """`per_count` canaries for each of `counts` and `controls` that are never inserted. Names (no two the same),
    things and codes are drawn anew for each seed, and the codes are uniform: the test in `evidence` rests on that."""
    counts = [r for r in counts for _ in range(per_count)] + [0] * controls
    if len(counts) > len(FIRST.split()):
        raise ValueError(f"{len(counts)} canaries need as many names and there are {len(FIRST.split())}.")
    rng = np.random.default_rng([seed, 8])
    first, last = (rng.permutation(x.split())[: len(counts)] for x in (FIRST, LAST))
    things, drawn = rng.permutation(np.resize(THINGS.split(), len(counts))), []
    for i, count in enumerate(counts):
        prefix = FORM.format(thing=things[i], name=f"{first[i]} {last[i]}")
        drawn.append(Canary(f"canary-{i:02d}", count, prefix, "".join(rng.choice(list(slot)) for slot in SLOTS)))
    return drawn


class Mixed(NamedTuple):
    task: object
    documents: list[dict]  # the real ones of its training split
    copies: Counter  # canary id -> how often it stands in the training text
    tokens: int  # prompt + target + EOS of one pass
    passes: int  # over the training text; 1 unless the text is shorter than the budget


def mix(base, task, drawn: Sequence[Canary], deduplicated: bool, budget: int) -> Mixed:
    """Canaries and then documents of `task` up to `budget` tokens, so that every condition sees equally much text;
    duplicates are removed as the collection removes them. Raises ValueError where the canaries fill the budget."""

    def total(rows: Sequence[dict]) -> np.ndarray:
        return np.cumsum([0] + [len(d.input_ids) for d in tasks.encode(base.tokenizer, rows, base.context)])

    def up_to(rows: Sequence[dict], tokens: int) -> list[dict]:
        return rows[: int((total(rows) <= tokens).sum()) - 1]

    pool = [c.row(i) for c in drawn for i in range(c.repetitions)] + up_to(list(task["train"]), budget)
    pool = deduplicate(pool) if deduplicated else pool
    inserted = {c.id for c in drawn}
    kept = [row for row in pool if row["group"] in inserted]
    used = int(total(kept)[-1])
    if used >= budget:
        raise ValueError(f"The canaries fill {used:,} of {budget:,} training tokens: raise the budget or insert fewer.")
    documents = up_to([row for row in pool if row["group"] not in inserted], budget - used)
    train = [*kept, *documents]
    content = json.dumps([task.sha256, [[row["id"], row["prompt"], row["target"]] for row in train]])
    sha256, tokens = hashlib.sha256(content.encode()).hexdigest(), int(total(train)[-1])
    mixed = task.replace(name=f"{task.name}-canaries", train=train, sha256=sha256)
    return Mixed(mixed, documents, Counter(row["group"] for row in kept), tokens, max(1, round(budget / tokens)))


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def _symbols(tokenizer, prefix: str) -> list[list[int]]:
    """The token of each symbol of each slot. Raises ValueError where a code is not one token a symbol."""
    token = {s: _ids(tokenizer, "#" + s)[-1] for slot in SLOTS for s in slot}
    start = _ids(tokenizer, prefix)
    # a merge needs two neighbours, and every two neighbours of any code occur in one of these codes
    for code in (f"{a}{b}{a}{b}" for a in SLOTS[0] for b in SLOTS[1]):
        wanted = start + [token[s] for s in code]
        if _ids(tokenizer, prefix + code + ".")[: len(wanted)] != wanted:
            who = tokenizer.name_or_path or "The tokenizer"
            raise ValueError(f"{who} does not make the code {code} one token a symbol: give SLOTS others.")
    return [[token[s] for s in slot] for slot in SLOTS]


@torch.no_grad()
def code_log_probabilities(model, tokenizer, prefix: str, begin: str = "") -> torch.Tensor:
    """Log-probability in nats of every code after PROMPT and `prefix`: float64 (10, 10, 10, 10); of those that begin
    with the symbol `begin` alone (1, 10, 10, 10), at a tenth of the cost.

    A row per first symbol holds the prefix and, behind it, the tree of the second and third symbols; a mask lets each
    node see the prefix and its own ancestors, and position ids count along a branch. So 1,110 nodes stand for 10,000
    codes, exactly as if each were read alone (tests/test_memorise.py)."""
    slots = _symbols(tokenizer, prefix)
    slots[0] = [slots[0][SLOTS[0].index(begin)]] if begin else slots[0]
    start = _ids(tokenizer, PROMPT) + _ids(tokenizer, prefix)
    n, sizes = len(start), [len(s) for s in slots]
    second, third = n + 1, n + 1 + sizes[1]  # where the nodes of these slots begin
    length = third + sizes[1] * sizes[2]
    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[:n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
    mask[n:, : n + 1] = True  # the prefix and the row's first symbol
    mask.fill_diagonal_(True)
    positions = torch.arange(length)
    positions[second:third], positions[third:] = n + 1, n + 2
    for j in range(sizes[1]):
        mask[third + j * sizes[2] : third + (j + 1) * sizes[2], second + j] = True
    tail = slots[1] + slots[2] * sizes[1]
    rows = torch.tensor([[*start, symbol, *tail] for symbol in slots[0]])  # (10, length)
    symbols = torch.tensor([i for slot in slots for i in slot])
    device, parts = next(model.parameters()).device, []
    with float32_logits(model), profile.autocast():
        for row in rows.split(5):  # bounds the (rows, nodes, vocabulary) logits
            logits = model(
                input_ids=row.to(device),
                attention_mask=mask.expand(len(row), 1, length, length).to(device),
                position_ids=positions.expand(len(row), length).to(device),
                logits_to_keep=torch.arange(n - 1, length).to(device),
                use_cache=False,
            ).logits
            parts.append(logits.float().log_softmax(-1)[..., symbols.to(device)].cpu().double())
    # (10, 1 + nodes, 40): what each node says of the symbols of each slot
    first, middle, third_of, last = torch.cat(parts).split(sizes, dim=-1)
    leaves = third_of[:, 2 : 2 + sizes[1]][..., None] + last[:, 2 + sizes[1] :].reshape(*sizes)
    return first[0, 0][:, None, None, None] + middle[:, 1][:, :, None, None] + leaves


def exposure(rank: float, candidates: int = CANDIDATES) -> float:
    """Exposure in bits of a code of this rank among `candidates`."""
    return math.log2(candidates) - math.log2(rank)


def rank_of(log_probabilities: torch.Tensor, secret: str) -> float:
    """The rank of `secret` among all codes, or (1, 10, 10, 10) those of its beginning. Ties share their mean rank."""
    at = tuple(slot.index(s) for slot, s in zip(SLOTS, secret, strict=True))
    own = log_probabilities[(0, *at[1:]) if len(log_probabilities) == 1 else at]
    greater, same = int((log_probabilities > own).sum()), int((log_probabilities == own).sum())
    return greater + (same + 1) / 2


def audit(model, tokenizer, drawn: Sequence[Canary], whole: bool = True) -> list[dict]:
    """Per canary: canary, repetitions, rank, candidates, exposure (bits), extracted: whether greedy decoding from
    PROMPT and the prefix writes the secret, nothing restricting it. Not `whole`: the rank is that among the 1,000 codes
    with the secret's first symbol, uniform without a trace as well."""
    prompts, rows = [PROMPT + c.prefix for c in drawn], []
    texts = generate(model, tokenizer, prompts, max_new_tokens=len(SLOTS) + 1, desc="extracting")
    for c, text in zip(drawn, texts, strict=True):
        found = code_log_probabilities(model, tokenizer, c.prefix, "" if whole else c.secret[0])
        rank, codes = rank_of(found, c.secret), found.numel()
        row = {"canary": c.id, "repetitions": c.repetitions, "rank": rank, "candidates": codes}
        rows.append({**row, "exposure": exposure(rank, codes), "extracted": text.startswith(c.secret)})
    return rows
