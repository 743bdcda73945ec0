"""Small tables as notebooks 07 to 11 write them, made up: what report.md's blocks are tested on before the real ones
exist."""

import pandas as pd

from lib.explore import anonymise, bench, compressors, data_to_text, frontier, memorise, traps

SEEDS = (0, 1, 2)


def chinese() -> dict[str, pd.DataFrame]:
    methods = {"none": 0.4, "pieces": 0.3, "random": 0.5, "plan": 0.2}
    runs = [("tang", m, s) for m in methods for s in SEEDS] + [("idioms", "none", s) for s in SEEDS]
    before = {"stage": "before", "method": "none", "seed": 0, "train_tokens": 0}
    scores = [{"task": t, **before, "bits_per_character": 9.0} for t in ("tang", "idioms")]
    scores += [
        {
            "task": t,
            "stage": "after",
            "method": m,
            "seed": s,
            "train_tokens": 40_000,
            "bits_per_character": 7 + methods[m] + 0.01 * s,
        }
        for t, m, s in runs
    ]
    measures = ("exact_form", "rhyme", "copied_line", "alternation", "opposition", "repeated")
    head = {"task": "tang", "stage": "", "method": "none", "seed": 0}
    form = [{**head, "source": "people", "measure": m, "value": 0.85, "texts": 100} for m in measures]
    form += [{**head, "source": "chance", "measure": m, "value": 0.1, "texts": 100} for m in ("rhyme", "alternation")]
    form += [{**head, "stage": "before", "source": "before", "measure": m, "value": 0.0, "texts": 50} for m in measures]
    form += [
        {
            "task": "tang",
            "stage": "after",
            "method": m,
            "seed": s,
            "source": "after",
            "measure": k,
            "value": 0.5,
            "texts": 50,
        }
        for m in methods
        for s in SEEDS
        for k in measures
    ]
    form += [
        {
            "task": "tang",
            "stage": "after",
            "method": m,
            "seed": s,
            "source": "after, chance",
            "measure": "rhyme",
            "value": None if m == "random" else 0.12,
            "texts": 20,
        }
        for m in methods
        for s in SEEDS
    ]
    vocabulary = [
        {
            "method": m,
            "seed": s,
            "bits_per_character": 7 + methods[m] + 0.01 * s,
            "new_tokens": 0 if m == "none" else 2_000,
            "tokens_per_poem": 60.0,
            "train_seconds": 100.0,
            "seconds_per_sample": 0.5,
            "tokens_per_second": 300.0,
        }
        for m in ("none", "pieces", "random")
        for s in SEEDS
    ]
    plans = [
        {"seed": s, "source": source, "measure": m, "value": 0.8 if source == "own plan" else 0.1, "texts": 50}
        for s in SEEDS
        for source in ("own plan", "unrhymed plan")
        for m in ("exact_form", "ends_kept", "rhyme")
    ]
    forgetting = [
        {
            "task": "tang",
            "stage": "before",
            "method": "none",
            "seed": 0,
            "measure": "debian_bits_per_byte",
            "value": 1.2,
        }
    ]
    forgetting += [
        {
            "task": t,
            "stage": "after",
            "method": m,
            "seed": s,
            "measure": "debian_bits_per_byte",
            "value": 1.3 + 0.01 * s,
        }
        for t, m, s in runs
    ]
    samples = [
        {"task": "tang", "id": "a", "prompt": "相思", "source": s, "text": "红豆生南国，\n春来发几枝。"}
        for s in ("people", "before")
    ]
    tokens = [
        {"corpus": "Tang poems", "tokenizer": t, "tokens_per_character": 1.9, "invalid_percent": 80.0}
        for t in ("GPT-2", "base")
    ]
    return {
        "before_after": scores,
        "form": form,
        "vocabulary": vocabulary,
        "plans": plans,
        "learning": [],
        "tokenisation": tokens,
        "forgetting": forgetting,
        "samples": samples,
    }


def private() -> dict[str, pd.DataFrame]:
    before = {"stage": "before", "method": "none", "deduplicated": "none"}
    whos = [(before, (0,))] + [
        ({"stage": "after", "method": m, "deduplicated": d}, SEEDS) for m in ("full", "lora") for d in ("no", "yes")
    ]
    scores = [
        {
            **who,
            "seed": s,
            "bits_per_byte": 1.2 - 0.2 * (who["stage"] == "after") + 0.01 * s,
            "perplexity": 20.0,
            "chrf": 15.0,
            "rouge_l": 0.1,
        }
        for who, own in whos
        for s in own
    ]
    memory = pd.DataFrame(
        [
            {
                **who,
                "seed": s,
                "canary": f"c{r}-{i}",
                "repetitions": r,
                "copies": r if who["stage"] == "after" else 0,
                "exposure": 1.0 + 0.2 * i + (0.2 * r if who["deduplicated"] == "no" else 0),
                "extracted": r == 64 and who["deduplicated"] == "no",
            }
            for who, own in whos
            for s in own
            for r in (0, 1, 8, 64)
            for i in range(3)
        ]
    )
    verbatim = [
        {**who, "seed": s, "split": split, "documents": 40, "verbatim": 4, "share": 0.1}
        for who, own in whos
        for s in own
        for split in ("train", "test")
    ]
    counts = {
        ("documents", "found"): 900,
        ("documents", "exact duplicates removed"): 20,
        ("documents", "near-duplicates removed"): 80,
        ("documents", "kept"): 800,
        ("replaced", "email"): 7,
        ("split", "train"): 640,
        ("split", "validation"): 80,
        ("split", "test"): 80,
    }
    return {
        "before_after": scores,
        "memorisation": memory,
        "verbatim": verbatim,
        "anonymiser": [
            anonymise._ratios("email", 10, 10, 9),
            anonymise._ratios("name", 0, 3, 0),
            anonymise._ratios("all", 10, 13, 9),
        ],
        "evidence": memorise.evidence(memory, ["method", "deduplicated", "repetitions"]),
        "recommendation": memorise.recommendation(memory),
        "card": [{"what": what, "key": key, "value": v} for (what, key), v in counts.items()],
    }


def innovation(seeds=SEEDS) -> dict[str, pd.DataFrame]:
    conversion = [
        {
            "form": form,
            "seed": s,
            "stage": stage,
            "share": share,
            "matched": matched,
            "order": order,
            "bits_per_byte": 1 + share + 0.01 * s + 0.5 * (not matched) + 0.25 * (order == "most_damage"),
        }
        for s in seeds
        for form in ("linear+window", "linear", "window")
        for stage in ("converted", "fine_tuned")
        for share in (0.0, 0.5, 1.0)
        for matched in (True, False)
        for order in ("least_damage", "most_damage")
    ]
    damage = [
        {
            "form": "linear+window",
            "layer": i,
            "seed": s,
            "damage": 0.1 * (i + 1),
            "matching_error": 0.1,
            "error_unmatched": 0.5,
        }
        for i in range(4)
        for s in seeds
    ]
    decoding = [
        {"form": f, "share": x, "context": c, "milliseconds": 1.0 + x, "state_kilobytes": 10.0 + c * (1 - x)}
        for f, x in (("softmax", 0.0), ("linear+window", 1.0))
        for c in (64, 512)
    ]
    ways = [
        ("none", "before", 2.0, 1.0, seeds[:1]),
        ("full", "lr 1e-4", 1.0, 2.0, seeds),
        ("interpolation", "alpha 0.5", 1.5, 1.25, seeds),
        ("LoRA", "rank 4", 1.5, 1.1, seeds),
        ("LoRA", "rank 64", 1.4, 1.2, seeds),
        ("Muon", "lr 1e-4", 0.5, 1.0, seeds),
    ]
    table = pd.DataFrame(
        [
            {
                "method": m,
                "setting": x,
                "seed": s,
                "bits_per_byte": a + 0.001 * s,
                "base_samples_bits_per_byte": b + 0.001 * s,
            }
            for m, x, a, b, own in ways
            for s in own
        ]
    )
    general = frontier.general_measure(table)
    values = pd.DataFrame(
        [
            {"trap": trap, "model": m, "seed": s, "sound": 1.0 + i + 0.001 * s, "trapped": x[i] + 0.001 * s}
            for trap, x in (("own samples", (3, 2, 1)), ("overlap", (1, 2, 3)))
            for i, m in enumerate("abc")
            for s in seeds
        ]
    )
    return {
        "conversion": conversion,
        "layer_damage": damage,
        "decoding": decoding,
        "frontier": table,
        "front": frontier.summary(table, general),
        "against_interpolation": frontier.against_interpolation(table, general),
        "traps": traps.summary(values),
        "trap_values": values,
        "audit": [
            {
                "notebook": "02_finetune",
                "table": "runs",
                "trap": "one seed",
                "where": "x",
                "problem": "1 seed.",
                "way_out": "more",
            }
        ],
    }


def scenario() -> dict[str, pd.DataFrame]:
    e2e = [
        {
            "system": system,
            "kind": "ours",
            "shots": 3 if "shot" in system else 0,
            "seed": s,
            "inputs": 32,
            "bleu": bleu + s,
            "nist": 5.0,
            "rouge_l": 0.5,
            "ser": ser + 0.01 * s,
        }
        for system, bleu, ser in (("3-shot", 20.0, 0.4), ("fine-tuned, full", 50.0, 0.2))
        for s in SEEDS
    ]
    e2e += [{"system": "people", "kind": "human", "inputs": 32, "ser": 0.05}]
    e2e += [{"kind": "published", "inputs": 630, **row} for row in data_to_text.PUBLISHED]
    slots = [
        {"system": x, "seed": 0, "slots": n, "texts": 4, "ser": 0.01 * n}
        for x in ("fine-tuned, full", "people")
        for n in (3, 8)
    ]
    models = [("model before", "before", 0, 1.5), *(("model after", "after", s, 1.2 + 0.01 * s) for s in SEEDS)]
    common = {"domain": "debian", "documents": 4, "original_bytes": 1_000}
    table = [
        {
            **common,
            "compressor": name,
            "stage": stage,
            "seed": s,
            "packaging": "archive",
            "bits_per_byte": b,
            "compressed_bytes": b * 125,
            "ideal_bytes": b * 124,
            "identical_documents": 4,
            "header_bytes": 0,
            "round_trip": True,
            "shared_bytes": 5e8,
            "encode_kb_per_s": 0.5,
            "decode_kb_per_s": 0.4,
        }
        for name, stage, s, b in models
    ]
    table.append(
        {
            **common,
            "compressor": "xz -9e",
            "stage": "none",
            "seed": 0,
            "packaging": "together",
            "bits_per_byte": 1.21,
            "compressed_bytes": 150,
            "round_trip": True,
            "shared_bytes": 0,
            "encode_kb_per_s": 300.0,
        }
    )
    table = pd.DataFrame(table)
    pairs = [{"domain": "debian", "seeds": 3, "difference": -0.3, "low": -0.4, "high": -0.2}]
    return {
        "e2e": e2e,
        "e2e_by_slots": slots,
        "compression": table,
        "compression_by_document": pairs,
        "break_even": compressors.break_even(table),
        "one_file": [],
        "bit_identity": [{"arrangement": "other batch", "identical": 0.4, "positions": 64}],
    }


def performance() -> dict[str, pd.DataFrame]:
    speed = {"ours": 200.0, "trl": 100.0, "tutorial": 60.0, "lm-eval": 90.0, "pipeline": 25.0}
    kinds = {
        "training": ("ours", "trl", "tutorial"),
        "evaluation": ("ours", "tutorial", "lm-eval"),
        "generation": ("ours", "pipeline"),
    }
    made: dict = {
        kind: pd.DataFrame(
            {
                "system": s,
                "setting": "default",
                "device": "d",
                "run": run,
                bench.SPEED[kind]: speed[s] + run,
                "peak_megabytes": 2_000.0,
                "bits_per_byte": 5.0,
            }
            for s in systems
            for run in SEEDS
        )
        for kind, systems in kinds.items()
    }
    made["ceiling"] = pd.DataFrame(
        {"device": "d", "dtype": t, "run": run, "gflops": g}
        for t, g in (("float32", 30.0), ("bfloat16", 60.0))
        for run in SEEDS
    )
    limits = [
        {"kind": k, "system": s, "setting": "default", "run": run, "gflops": g, "share": g / 60}
        for k, s, g in (("training", "ours", 42.0), ("evaluation", "ours", 40.0), ("evaluation", "tutorial", 20.0))
        for run in SEEDS
    ]
    quality = [
        {"system": s, "seed": seed, "steps": 4, "held_out_loss": x + seed}
        for s, x in (("plain", 8.0), ("ours", 8.01))
        for seed in SEEDS
    ]
    fits = [
        {"axis": "batch", "measure": "step_seconds", "exponent": 0.8, "fixed": 0.5, "each": 1.5},
        {"axis": "context", "measure": "step_seconds", "exponent": 1.1, "fixed": None, "each": None},
    ]
    faults = [{"fault": "kill", "injected": 20, "lost": 0}, {"fault": "disk full", "injected": 5, "lost": 1}]
    return made | {"ratios": bench.ratios(made), "limits": limits, "quality": quality, "fits": fits, "faults": faults}


TABLES = {
    "07_chinese": chinese,
    "08_private_domain": private,
    "09_innovation": innovation,
    "10_new_scenario": scenario,
    "11_performance": performance,
}
FIGURES = {
    "07": ["07_form"],
    "08": ["08_exposure"],
    "09": ["09_conversion", "09_frontier", "09_traps"],
    "10": ["10_few_shot", "10_compression"],
    "11": ["11_speed"],
}
