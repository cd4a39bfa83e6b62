"""Recall tasks, and the model that learns them."""
import pytest, torch
import tokenlab.mixers.recall as c
from tokenlab.mixers.core import MIXERS


@pytest.mark.parametrize("pairs,B", [(1, 1), (8, 3), (32, 2)])
def test_associative_recall_can_be_solved_from_its_context(pairs, B):
    batch = c.associative(B, pairs, seed=1)
    for ids, targets in zip(batch["ids"].tolist(), batch["targets"].tolist()):
        told = dict(zip(ids[:2*pairs:2], ids[1:2*pairs:2]))
        assert len(told) == pairs and sorted(ids[2*pairs::2]) == sorted(told)
        assert targets == [-1]*(2*pairs) + [x for k in ids[2*pairs::2] for x in (told[k], -1)]


def test_needle_stands_once_before_the_questions():
    batch = c.needle(50, 40, seed=2)
    for ids, targets in zip(batch["ids"].tolist(), batch["targets"].tolist()):
        for i in range(32, 40, 2):
            at = ids.index(ids[i])
            assert at < 31 and ids.count(ids[i]) == 2 and ids[at + 1] == targets[i] == ids[i + 1] and 32 <= targets[i] < 64
        assert all(t == -1 for t in targets[:32] + targets[33::2])


@pytest.mark.parametrize("length", [14, 41])
def test_a_haystack_has_room_for_marks_and_questions(length):
    with pytest.raises(ValueError, match=f"length={length}"): c.needle(2, length, seed=0)


def test_the_input_carries_one_neighbour_and_nothing_later():
    model = c.recaller(MIXERS["identity"], length=12, vocab_size=20, dim=16)
    ids = torch.arange(12)[None]
    for i in range(12):
        other = ids.clone()
        other[0, i] = 19
        changed = (model(ids).logits != model(other).logits).any(-1)[0].nonzero().flatten().tolist()
        assert changed == [t for t in (i, i + 1) if t < 12]


def test_a_seed_makes_the_same_model_and_texts():
    work = lambda B, seed: c.associative(B, 2, seed, symbols=4)
    def losses(seed): model = c.recaller(MIXERS["attention"], length=8, vocab_size=8, dim=16, seed=seed); return list(c.learn(model, work, steps=4, seed=seed).loss)
    assert losses(0) == losses(0) != losses(1)


def test_answers_are_counted_at_the_questions_only():
    batch = c.associative(20, 4, seed=3)
    class Knows(torch.nn.Module):
        def forward(self, ids): return c.LMOutput(torch.nn.functional.one_hot(batch["targets"].clamp(min=0), 68).float(), None)
    assert c.right_answers(Knows(), batch) == 1
    class Guesses(torch.nn.Module):
        def forward(self, ids): return c.LMOutput(torch.nn.functional.one_hot(torch.where(torch.arange(16) % 4 == 0, batch["targets"], 0).clamp(min=0), 68).float(), None)
    assert c.right_answers(Guesses(), batch) == .5
