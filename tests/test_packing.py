import pytest
import torch
from small_llama import small_llama

from lib.models import small_gpt2
from lib.packing import Encoded, attend_padded, attend_within_documents, document_attention, draw, flatten, pack, rows

MODELS = {"gpt2": lambda: small_gpt2(97), "llama": lambda: small_llama(97)}


def documents(lengths=(9, 5, 12, 7)):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]
    return [Encoded(x, len(x) // 3, 10 * len(x), f"d{i}") for i, x in enumerate(ids)]


@pytest.mark.parametrize("name", MODELS)
def test_packed_gradients_equal_one_document_at_a_time(name):
    """The logits too, and without our attention for a document alone."""
    docs, model, alone = documents(), MODELS[name](), MODELS[name]()
    batch = flatten(docs)
    labels, _ = batch.pop("labels")[0], batch.pop("document")
    with document_attention(model):
        packed = model(**batch).logits[0]  # (N, V)
    plain = torch.cat([alone(torch.tensor([d.input_ids])).logits[0, d.prompt_length - 1 : -1] for d in docs])
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    for logits in (packed, plain):
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    gradients = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, alone)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_padded_documents_attend_as_one_at_a_time(kv_heads):
    """What a GPU computes in one call against one call per document, in outputs and in every gradient."""
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, 9, 1, 12, 7], dtype=torch.int32).cumsum(0)
    parts = [torch.randn(1, heads, 29, 8, generator=generator) for heads in (4, kv_heads, kv_heads)]
    inputs = [[x.clone().requires_grad_() for x in parts] for _ in range(2)]
    padded = attend_padded(*inputs[0], None, 0.0, bounds)
    naive, _ = attend_within_documents(None, *inputs[1], None, cu_seq_lens_q=bounds)
    assert padded.shape == (1, 29, 4, 8)
    torch.testing.assert_close(padded, naive)
    ((padded + naive) * torch.randn(padded.shape, generator=generator)).sum().backward()
    torch.testing.assert_close(*([x.grad for x in leaves] for leaves in inputs))
    changed = [x + (torch.arange(29) == 15)[:, None] for x in parts]  # in the third document
    again = attend_padded(*changed, None, 0.0, bounds)
    assert torch.equal(again[:, :15], padded[:, :15]) and torch.equal(again[:, 22:], padded[:, 22:])
    low = [x.bfloat16() for x in parts]  # under autocast rotary positions leave queries and keys in float32
    rotated, plain = ((*qk, low[2], None) for qk in (parts[:2], low[:2]))
    assert torch.equal(*(attend_within_documents(None, *x, cu_seq_lens_q=bounds)[0] for x in (rotated, plain)))


def test_labels_are_the_targets_and_eos_and_no_prompt():
    batch = flatten([Encoded([1, 2, 3, 4], 2, 5), Encoded([5, 6, 7], 0, 5)])
    assert batch["labels"].tolist() == [[3, 4, 6, 7]]  # a promptless document's first token has no past
    assert batch["logits_to_keep"].tolist() == [1, 2, 4, 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 7]


def test_pack_holds_every_document_once_within_the_length():
    docs = documents(range(3, 40))
    packed = pack(docs, 64)
    assert sorted(i for row in packed for i in row) == list(range(len(docs)))
    assert all(sum(len(docs[i].input_ids) for i in row) <= 64 for row in packed)
    assert sum(len(d.input_ids) for d in docs) / (64 * len(packed)) > 0.9  # first fit decreasing wastes little


def test_draw_repeats_no_document_before_all_were_drawn():
    docs = documents((10,) * 8)
    drawn = draw(docs, 120, seed=3)
    assert len(drawn) == 12
    assert {d.id for d in drawn[:8]} == {d.id for d in docs}
    assert [d.id for d in drawn] == [d.id for d in draw(docs, 120, seed=3)]
    assert [d.id for d in drawn] != [d.id for d in draw(docs, 120, seed=4)]


def test_rows_come_in_multiples_of_a_step_and_in_the_drawn_order():
    packed = rows(documents((10,) * 23), 30, multiple=3)
    assert len(packed) == 6  # 8 rows hold 23 documents; the two emptiest go
    assert all(sum(len(d.input_ids) for d in row) == 30 for row in packed)
    drawn = documents([3 + 7 * i % 23 for i in range(200)])  # a window holds 35
    places = [drawn.index(d) for row in rows(drawn, 30, multiple=1) for d in row]
    assert sorted(places) == [*range(200)] and max(abs(place - i) for i, place in enumerate(places)) < 40
