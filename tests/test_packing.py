import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.models import small_gpt2
from lib.packing import Encoded, document_attention, draw, flatten, pack, rows


def small_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}  # grouped queries, as in the stand-in
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes, **heads)).eval()


MODELS = {"gpt2": lambda: small_gpt2(97), "llama": small_llama}


def documents(lengths=(9, 5, 12, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]
    return [Encoded(x, len(x) // 3, 10 * len(x), f"d{i}") for i, x in enumerate(ids)]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_packed_logits_equal_one_document_at_a_time(name):
    model, docs = MODELS[name](), documents()
    batch = flatten(docs)
    batch.pop("labels"), batch.pop("document")
    with document_attention(model):
        packed = model(**batch).logits[0]  # (N, V)
    alone = torch.cat([model(torch.tensor([d.input_ids])).logits[0, d.prompt_length - 1 : -1] for d in docs])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_packed_gradients_equal_one_document_at_a_time(name):
    gradients = []
    for packed in (True, False):
        model, docs = MODELS[name](), documents()
        total = 0.0
        for part in [docs] if packed else [[d] for d in docs]:
            batch = flatten(part)
            labels, _ = batch.pop("labels")[0], batch.pop("document")
            with document_attention(model):
                logits = model(**batch).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_document_does_not_see_its_neighbours():
    model, docs = small_gpt2(97), documents()
    changed = [documents(seed=1)[0], *docs[1:]]
    outputs = []
    for part in (docs, changed):
        batch = flatten(part)
        del batch["labels"], batch["document"]
        batch["logits_to_keep"] = torch.arange(9, 33)  # everything after the first document
        with document_attention(model):
            outputs.append(model(**batch).logits)
    assert torch.equal(*outputs)


def test_the_models_own_attention_and_cache_are_restored():
    model = small_gpt2(97)
    before = model.config._attn_implementation, model.config.use_cache
    with document_attention(model):
        assert model.config._attn_implementation == "documents"
    assert (model.config._attn_implementation, model.config.use_cache) == before


def test_labels_are_the_targets_and_eos_and_no_prompt():
    docs = [Encoded([1, 2, 3, 4], 2, 5), Encoded([5, 6, 7], 0, 5)]
    batch = flatten(docs)
    assert batch["labels"].tolist() == [[3, 4, 6, 7]]  # a promptless document's first token has no past
    assert batch["logits_to_keep"].tolist() == [1, 2, 4, 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 7]


def test_pack_holds_every_document_once_within_the_length():
    docs = documents(range(3, 40))
    packed = pack(docs, 64)
    assert sorted(i for row in packed for i in row) == list(range(len(docs)))
    assert all(sum(len(docs[i].input_ids) for i in row) <= 64 for row in packed)
    filled = sum(len(d.input_ids) for d in docs) / (64 * len(packed))
    assert filled > 0.9  # first fit decreasing wastes little


def test_draw_repeats_no_document_before_all_were_drawn():
    docs = documents((10,) * 8)
    drawn = draw(docs, 120, seed=3)
    assert len(drawn) == 12
    assert {d.id for d in drawn[:8]} == {d.id for d in docs}
    assert [d.id for d in drawn] == [d.id for d in draw(docs, 120, seed=3)]
    assert [d.id for d in drawn] != [d.id for d in draw(docs, 120, seed=4)]


def test_rows_come_in_multiples_of_a_step():
    packed = rows(documents((10,) * 23), 30, multiple=3)
    assert len(packed) == 6  # 8 rows hold 23 documents; the two emptiest go
    assert all(sum(len(d.input_ids) for d in row) == 30 for row in packed)
