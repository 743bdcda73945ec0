"""A small finished project for the tests of check, export and pack: report, figures, notebooks, results."""

import json
import subprocess
from pathlib import Path

import nbformat
from PIL import Image, ImageDraw

from lib import profile

NAMES = ["01_load_and_generate", "02_finetune", "03_evaluate", "04_token_encoding", "05_position_encoding"]  # fmt: skip

REPORT = r"""# Fine-tuning GPT-2 117M, before and after

We fine-tune GPT-2 117M on package descriptions and measure the same held-out documents before and after.
The numbers are of the stand-in SmolLM2-135M-Instruct, not of GPT-2.

## 1 Team and division of labour

| member | part | share |
|--|--|--|
| 王小明 (Wang Xiaoming) | data, fine-tuning, sections 4 and 5 | 50 % |
| Li Hua | encodings, positions, sections 6.1 and 6.2 | 50 % |

## 2 The model

### Structure

GPT-2 117M is a stack of 12 blocks, each a causal self-attention and a feed-forward network (MLP), both behind layer
normalisation and added to the residual stream. Token and learned position embeddings of width 768 go in; the output
layer shares the token embedding's weights. 124,439,808 parameters in all. Attention of head $h$ is

$$\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_h}} + M\right) V, \qquad M_{ij} = -\infty \text{ for } j > i$$

so that position $i$ never sees the future. See [Figure](figures/03_before_after.png) for what it learns.

### How it generates

Autoregressively: $p(x_1, \ldots, x_T) = \prod_t p(x_t \mid x_{<t})$. The last position's logits are divided by the
temperature, cut to the top k or the top p of the probability, and one token is sampled from what is left; it is appended
and the next step reads it, with the keys and values of earlier steps from a cache. Generation ends at the EOS token. Greedy
decoding takes the most probable token and repeats itself; sampling does so less. What the model assigns to text is measured
in bits per byte,[^bits] which does not depend on the tokenizer.

[^bits]: Nats of the target's tokens, EOS included, over ln 2 times the target's UTF-8 bytes.

## 3 Prior work

GPT-2 was introduced by [Radford et al. 2019](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf);
LoRA by [Hu et al. 2021](https://arxiv.org/abs/2106.09685). Before training we verified that the model loads and generates
(notebook 01): its logits equal those of our own implementation, the known perplexity of WikiText-2 is met, and a prompt is
continued in English. Public solutions of this assignment measured the loss on the model's own samples, where fine-tuning looks
worse; others compared random weights with pretrained ones. Anchors: E2E with GPT-2 small and LoRA reaches BLEU 67.27, GPT-2's
zero-shot perplexity on WikiText-2 is 29.41 in the paper and 29.94 per token here, and [Press et al. 2022](https://arxiv.org/abs/2108.12409)
trained ALiBi on short text and evaluated on long text.

## 4 Data

### The dataset

`debian`: 7,637 Debian package descriptions to train on, 983 to validate, 961 to test, written by people, checkable against
name, section and tags. Its card is in [data/README.md](data/README.md#debian). Source: Debian 12, main. Licences: those of the packages, all free. The
task: from name, section and tags to a synopsis and a description. Chinese: `tang`, Tang quatrains such as 王维《相思》

> 红豆生南国，\
> 春来发几枝。\
> 愿君多采撷，\
> 此物最相思。

### Processing

Descriptions with an address are left out; near-duplicates go before the split (MinHash, then exact Jaccard similarity
of 0.3); the split is 80/10/10 by a hash of the source package, so that no package straddles it; rows are packed without
padding; the loss counts the target and EOS only.

## 5 Before and after fine-tuning

![Held-out documents before and after; 红豆 *three seeds*, mean and 95 % interval](figures/03_before_after.png)

| | bits per byte | token perplexity | chrF | ROUGE-L | synopsis in form | tags reflected |
|--|--|--|--|--|--|--|
| before | <!--= before -->1.229<!--/--> | 34.23 | 14.5 | 0.085 | 0.05 | 0.14 |
| after, full | 1.042 [1.038, 1.045] | 20.00 [19.81, 20.18] | 21.4 [20.5, 22.3] | 0.170 [0.160, 0.180] | 0.99 [0.97, 1.01] | 0.34 [0.25, 0.43] |
| after, LoRA | 1.053 [1.052, 1.054] | 20.66 [20.59, 20.73] | 20.0 [18.2, 21.8] | 0.164 [0.144, 0.184] | 0.98 [0.96, 1.00] | 0.30 [0.26, 0.33] |

```bash
python -m lib run 01 02 03 && accelerate launch --multi_gpu --num_processes 2 -m lib finetune --task debian --method lora --set pack_length=1024
```

## 6 Explorations

### 6.1 Token encodings

**Principle.** A tokenizer trades sequence length for vocabulary; bits per byte make encodings comparable.

**Change.** Bytes, characters, BPE, WordPiece and Unigram tokenizers, trained anew.

**Experiment.** The same 0.5 MB of text, equal non-embedding parameters, seeds 0, 1, 2.

**Result.** BPE 8,192 is ahead of bytes by 0.663 [0.569, 0.757] bits per byte; see [section 5](#5-before-and-after-fine-tuning).

### 6.2 Position encodings

**Principle.** RoPE turns queries and keys by an angle that grows with the position, so that scores depend on distances:

$$\langle R_m q, R_n k \rangle = \langle R_{m-n}\, q, k \rangle, \quad R_\theta = \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}$$

**Change.** The learned positions are replaced by sinusoids, RoPE, ALiBi, T5 buckets or nothing.

**Experiment.** Trained at 128 tokens, evaluated up to 1,024, three seeds.

**Result.** ALiBi holds its 2.005 at 1,024 tokens; learned positions lose 0.226.

## 7 Limits

One dataset, small budgets, a stand-in for GPT-2.

## 8 Sources

Code: transformers' GPT-2 and Trainer, peft's LoRA; the attention follows the papers. Model: SmolLM2-135M-Instruct (Apache-2.0).

1. Radford et al. 2019, <https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf>
2. Hu et al. 2021, <https://arxiv.org/abs/2106.09685>
3. Press et al. 2022, <https://arxiv.org/abs/2108.12409>
4. Su et al. 2021, <https://arxiv.org/abs/2104.09864>

## Appendix A: Defence map

| claim | where | function | test |
|--|--|--|--|
| The loss counts targets and EOS only | notebook 02, cell 5 | [`lib.packing.pack_without_padding_and_position_ids`](lib/packing.py) | `tests/test_packing.py::test_packed_equals_one_by_one_in_loss_and_every_gradient` |
| Nothing sees the future | notebook 06 | `lib.costs.largest_difference_before_the_changed_position` | `tests/test_attention.py::test_no_future` |

## Appendix B: Questions a TA would ask

*Why bits per byte?* Because token perplexity depends on the tokenizer.
"""

README = """# Fine-tune GPT-2 117M

```bash
pip install -r requirements.txt
python -m lib run 01 02 03
```

It generates, before and after fine-tuning:

![Before and after](figures/03_before_after.png)

```
This module is a part of the perl module.
```
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def notebook(stem: str, output: str = "bits per byte 1.042\n") -> str:
    """An executed notebook's JSON, with the cells of `source`."""
    book = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("print('bits per byte 1.042')", id="b")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    book.cells = [nbformat.v4.new_markdown_cell(f"# {stem}\n\n$x^2$, 红豆", id="a"), cell]
    return nbformat.writes(book) + "\n"


def source(stem: str) -> str:
    return f"# %% [markdown]\n# # {stem}\n#\n# $x^2$, 红豆\n\n# %%\nprint('bits per byte 1.042')\n"


def results(stem: str) -> str:
    value = {"notebook": stem, "provenance": {"base_model": "SmolLM2-135M-Instruct (stand-in)", "stand_in": True,
             "profile": "full", "seeds": [0, 1, 2]}, "tables": {"before_after": [
                 {"task": "debian", "stage": stage, "method": method, "seed": 0, "bits_per_byte": bits}
                 for stage, method, bits in (("before", "none", 1.229), ("after", "full", 1.042))]}}  # fmt: skip
    return json.dumps(value) + "\n"


def figure(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (1280, 560), "white")
    ImageDraw.Draw(picture).line((40, 500, 1240, 60), fill="#004488", width=6)
    picture.save(path, dpi=(200, 200))


def project(root: Path, git: bool = True) -> Path:
    """A finished project in the new folder `root`; with `git`, committed."""
    write(root / "report.md", REPORT)
    write(root / "README.md", README)
    write(root / "requirements.txt", "torch\n-e .\n")
    write(root / "pyproject.toml", '[project]\nname = "sample"\nversion = "1"\n')
    write(root / "LICENSE", "MIT\n")
    write(root / ".gitignore", "build/\ndata/models/\ndata/runs/\ndata/private/\n__pycache__/\n")
    for name in ("__init__", "packing", "__main__"):
        write(root / "lib" / f"{name}.py", '"""A module."""\n')
    write(root / "data/README.md", (profile.DATA / "README.md").read_text("utf-8"))
    write(root / "data/debian/card.json", '{"documents": 3}\n')
    write(root / "data/debian/train.jsonl", '{"prompt": "红豆", "target": "in /home/ken"}\n')
    for stem in NAMES:
        write(root / "notebooks" / f"{stem}.ipynb", notebook(stem))
        write(root / "notebooks" / f"{stem}.py", source(stem))
        write(root / "data/results" / f"{stem}.json", results(stem))
    figure(root / "figures/03_before_after.png")
    if git:
        commit(root, "init", "-q")
        commit(root, "add", "-A")
    return root


def commit(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
