"The bench: black boxes, refusals, figures; drafters that use part of a model."
import pytest, torch
from tokenlab.generate import Sampler, generate
from tokenlab.lm import HFLM, LM, LMConfig
from tokenlab.speculative import bench as module
from tokenlab.speculative.bench import fitting, make, run_all, same_tokenizer, table
from tokenlab.speculative.self_drafting import S2D, EarlyExit
from tokenlab.speculative.speculate import speculate


def lm_of(seed=0, **kw):
    lm = LM(LMConfig(**(dict(vocab_size=50, dim=32, n_layers=4, n_heads=4, max_len=96, tied=False) | kw)), seed=seed).eval()
    for w in lm.parameters():
        if w.ndim > 1: w.data.mul_(6)
    return lm


def test_every_method_that_fits_writes_the_plain_greedy_text():
    lm, small, rng = lm_of(), lm_of(seed=0), torch.Generator().manual_seed(0)
    for w in small.parameters():
        if w.ndim > 1: w.data.add_(.05*w.std()*torch.randn(w.shape, generator=rng))
    prompts = [torch.randint(50, (1 + 3*i,), generator=rng).tolist() for i in range(6)]
    names = fitting(lm, small)
    assert len(names) >= 8
    frame = table(run_all(lm, prompts, {n: make(n, lm, small) for n in names}, max_new_tokens=24, temperature=0), 0.)
    assert frame["same text"].tolist() == ["6/6"]*len(frame)
    assert float(frame.set_index("method")["tokens a call"]["draft"]) > 1.3


def test_a_black_box_takes_the_black_box_methods():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=96, initializer_range=.2)).eval()
    target = HFLM(model)
    names = fitting(target)
    assert "lookup" in names and "early exit" not in names
    frame = table(run_all(target, [[1, 2, 3, 1, 2]], {n: make(n, target) for n in names}, max_new_tokens=16, temperature=0), 0.)
    assert frame["same text"].tolist() == ["1/1"]*len(frame)
    with pytest.raises(ValueError, match="Llama-family"): make("early exit", target)


def test_tokenizers_of_one_size_that_differ_are_refused():
    class Words:
        vocab_size, special_tokens = 3, {}
        def __init__(self, pieces): self.pieces = pieces
        def token_bytes(self, i): return self.pieces[i]
    same_tokenizer(Words([b"a", b"b", b"c"]), Words([b"a", b"b", b"c"]))
    with pytest.raises(ValueError, match="token 1 is b'b' for the target"): same_tokenizer(Words([b"a", b"b", b"c"]), Words([b"a", b"c", b"b"]))


@pytest.mark.parametrize("thresholds", [[0., 0.], [.1, .12], [.3, .1], [2., 2.]])
@pytest.mark.parametrize("sampler", [Sampler(0.), Sampler()])
def test_waiting_rows_are_read_before_they_are_seen(thresholds, sampler):
    lm = lm_of(n_layers=3)
    for p in lm.parameters(): p.data.mul_(8/6 if p.ndim > 1 else 1)
    class Checked(S2D):
        def answer(self, ids, temperature):
            had, self.text = self.used.copy(), getattr(self, "text", [])[:self.views[0]._lengths[0]] + list(ids)
            logits = super().answer(ids, temperature)
            e = self.exits[next(j for j in range(3) if self.used[j] > had[j])]
            torch.testing.assert_close(logits, lm.logits(lm(torch.tensor([self.text]), layers=range(e)).hidden[0, -1]), atol=1e-3, rtol=1e-3)
            return logits
    done = speculate(lm, [1, 2, 3], drafter=Checked(lm, [1, 2, 3], thresholds), max_new_tokens=40, sampler=sampler, seed=0)
    if sampler.temperature == 0: assert done.ids == generate(lm, [1, 2, 3], max_new_tokens=40).ids


def test_early_exit_computes_every_layer_once_when_sampling_too():
    lm = lm_of()
    done = speculate(lm, [[1, 2, 3], [4]], drafter=EarlyExit(2, 3), max_new_tokens=20, sampler=Sampler(.8), seed=0)
    for g in done: assert g.layer_tokens == 4*g.positions and len(g.ids) == 20


def test_one_sorted_draft_serves_targets_of_several_sizes():
    lm, other = lm_of(), lm_of(seed=3, n_layers=2, dim=48)
    one = S2D(lm_of(seed=5, n_layers=3), [1, 2, 3], [.1, .12], length=4)
    for target in (lm, other, lm):
        assert speculate(target, [1, 2, 3], drafter=one, max_new_tokens=30).ids == generate(target, [1, 2, 3], max_new_tokens=30).ids


def test_quartiles_of_two_prompts_stay_between_them():
    lm = lm_of()
    frame = table(run_all(lm, [[1, 2], [3]], {}, max_new_tokens=4), 1.)
    assert frame["quartiles"].tolist() == ["1.00-1.00"]
    runs = {"plain": [(1., g), (1., g)] if (g := generate(lm, [1], max_new_tokens=4)) else None, "other": [(2., g), (4., g)]}
    assert table(runs, 1.).set_index("method")["quartiles"]["other"] == "0.31-0.44"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    from tokenlab.tokenizers.bpe import train_bpe
    lm_of(vocab_size=50).save_pretrained(tmp_path)
    train_bpe(["some text with some words"]*3, 270).save(tmp_path/"tokenizer.json")
    with pytest.raises(ValueError, match="the model only 50"): module.open_model(str(tmp_path))
