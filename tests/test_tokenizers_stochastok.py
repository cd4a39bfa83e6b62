"StochasTok: same bytes, the table by brute force, the law of the published loop, and its place in training."
import os, random, types
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2
import tokenlab.lm, tokenlab.training
from tokenlab.lab import load_lab
from tokenlab.lm import LM, LMConfig
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import ByteTokenizer
from tokenlab.tokenizers.stochastok import SPELLINGS, Respelt, StochasTok, expansion_table, kind_of, langgame, mcq_answers, spelling_scores
from tokenlab.training import fit

TEXT = "the theory of the thing, then and there, thereafter; other things gather together in the weather. "*5


@pytest.fixture(scope="module")
def tok(): return train_bpe([TEXT], 300, special_tokens=["<|endoftext|>"])


def brute(tok):
    ids = {t: i for i, t in enumerate(tok.tokens) if i not in tok.special_tokens.values()}
    return {i: [(ids[a], ids[b]) for a in ids for b in ids if a + b == t] for t, i in ids.items()}


def test_table_is_brute_force(tok):
    first, left, right = expansion_table(tok)
    for i, pairs in brute(tok).items(): assert sorted(zip(left[first[i]:first[i+1]].tolist(), right[first[i]:first[i+1]].tolist())) == sorted(pairs)
    assert first[tok.eos_id] == first[tok.eos_id + 1]
    assert all(first[i + 1] > first[i] for i, t in enumerate(tok.tokens) if len(t) > 1 and i != tok.eos_id)


@given(st.text(max_size=80), st.floats(0, 6), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_bytes_stay(text, p, seed):
    tok, ids = made(), made().encode(text)
    out = StochasTok(tok, p).expand(ids, seed)
    assert tok.decode_bytes(out) == text.encode() and len(ids) <= len(out) <= len(ids) + int(p*len(ids))
    if p == 0: assert out == ids

def made(kept=[]):
    if not kept: kept.append(train_bpe([TEXT], 300))
    return kept[0]


def law(ids, E, attempts):
    if not attempts: return {ids: 1.}
    found = Counter()
    for i, v in enumerate(ids):
        for pair in E[v] or [(v,)]:
            for o, q in law(ids[:i] + tuple(pair) + ids[i + 1:], E, attempts - 1).items(): found[o] += q/len(ids)/len(E[v] or [0])
    return found


@pytest.mark.parametrize("attempts", [1, 3])
def test_law(tok, attempts):
    E = brute(tok)
    start = tuple(tok.encode(" there the x")) if attempts < 3 else (max(E, key=lambda i: len(E[i])), tok._bytes[97])
    stoch, n, rng = StochasTok(tok, (attempts + .001)/len(start)), 30_000, np.random.default_rng(5)
    seen, exact = Counter(tuple(stoch.expand(start, rng)) for _ in range(n)), law(start, E, attempts)
    assert seen.keys() <= exact.keys()
    many = [o for o in exact if n*exact[o] >= 5]
    rest = n*(1 - sum(exact[o] for o in many))
    score = sum((seen[o] - n*exact[o])**2/(n*exact[o]) for o in many) + ((sum(seen[o] for o in exact.keys() - set(many)) - rest)**2/rest if rest > 5 else 0)
    assert score < chi2.ppf(.9999, len(many))


def test_authors_code(tok):
    "With TOKENLAB_STOCHASTOK naming a folder with the authors' stochastok_processor.py: the same table, and the same outcome given the same numbers."
    folder = os.environ.get("TOKENLAB_STOCHASTOK")
    if not folder: pytest.skip("TOKENLAB_STOCHASTOK names no folder: authors' code not at hand")
    names = {}
    exec(compile((Path(folder)/"stochastok_processor.py").read_text(), "stochastok_processor.py", "exec"), names)
    peer = object.__new__(names["StochastokProcessor"])
    plain = sorted((i, t) for t, i in tok._ids.items())
    peer.tokenizer, peer.expand_prop = types.SimpleNamespace(_mergeable_ranks={t: i for i, t in plain}), None
    theirs, mine = peer.build_expansions(), brute(tok)
    assert {k: sorted(v) for k, v in theirs.items()} == {k: sorted(v) for k, v in mine.items() if v}
    peer.expansions, ids = theirs, tok.encode(TEXT[:200])
    np.random.seed(3); random.seed(3)
    out = peer.expand(list(ids), expand_prop=1.)
    np.random.seed(3); random.seed(3)
    again = list(ids)
    for _ in range(len(ids)):
        i = np.random.randint(len(again))
        if again[i] in theirs: again[i:i+1] = random.choice(theirs[again[i]])
    assert out == again and tok.decode(out) == TEXT[:200]


def test_batch(tok):
    ids = torch.full((3, 30), -1)
    rows = [tok.encode(TEXT)[:30], tok.encode("then")[:2], tok.encode(TEXT[40:])[:20]]
    for r, row in enumerate(rows): ids[r, :len(row)] = torch.tensor(row)
    segments = torch.where(ids >= 0, torch.arange(30).expand(3, 30)//10, -1)
    out = StochasTok(tok, 1.)({"ids": ids, "segments": segments, "weight": 5}, torch.Generator().manual_seed(1))
    assert out["weight"] == 5 and out["ids"].shape == out["segments"].shape and out["ids"].shape[1] > 30
    for r, row in enumerate(rows):
        for s in range(3):
            assert tok.decode(out["ids"][r][out["segments"][r] == s]) == tok.decode(ids[r][segments[r] == s])
    same = StochasTok(tok, 1., same_length=True)({"ids": ids}, torch.Generator().manual_seed(1))["ids"]
    assert same.shape == (3, 30) and torch.equal(same, out["ids"][:, :30])


def test_trains_and_repeats(tok):
    ids = torch.tensor([tok.encode(TEXT)[:24]]*4)
    def run():
        lm = LM(LMConfig(tok.vocab_size, dim=16, n_layers=1, n_heads=2, max_len=64), seed=0)
        return fit(lm, lambda step: {"ids": ids}, steps=4, corrupt=StochasTok(tok, .5), progress=False, seed=3)
    a, b = run(), run()
    assert a.loss == b.loss and a.loss[-1] < a.loss[0] and len(set(a.tokens)) > 1


def test_dropout(tok):
    rng = np.random.default_rng(0)
    dropout = lambda p: tok.encode(TEXT, dropout=p, seed=int(rng.integers(2**63)))
    assert dropout(0.) == tok.encode(TEXT)
    assert dropout(1.) == [tok._bytes[b] for b in TEXT.encode()]
    lengths = [len(dropout(p)) for p in (0., .1, .3, .9)]
    assert lengths == sorted(lengths) and tok.decode(dropout(.3)) == TEXT


def test_langgame():
    words = "return value index class sequence of is all array function yellow banana letter success".split()
    for prompt, (right, *wrong) in langgame(words, 300, seed=1):
        right, wrong = right.strip(), [w.strip() for w in wrong]
        part = prompt.split("'")[1] if "'" in prompt.partition("?")[0] else ""
        if "most letter" in prompt: assert right.count(part) >= 2 and all(w.count(part) <= 1 for w in wrong)
        elif "contains" in prompt: assert part in right and not any(part in w for w in wrong)
        elif "starts" in prompt: assert right.startswith(part) and not any(w.startswith(part) for w in wrong)
        elif "ends" in prompt: assert right.endswith(part) and not any(w.endswith(part) for w in wrong)
        elif "longest" in prompt: assert len(right) >= 7 and all(len(w) <= 4 for w in wrong)
        else: assert len(right) <= 3 and all(len(w) >= 6 for w in wrong)
        assert all(w in prompt for w in [right, *wrong])
    assert langgame(words, 9, seed=4) == langgame(words, 9, seed=4) != langgame(words, 9, seed=5)


def test_a_question_says_what_it_asks():
    words = "return value index class sequence of is all array function yellow banana letter success the default".split()
    for kind in ("most", "contains", "starts", "ends", "longest", "shortest"): assert {kind_of(prompt) for prompt, _ in langgame(words, 30, seed=1, kinds=[kind])} == {kind}


def test_answers_are_the_likeliest_option(tok):
    "Against the log-probabilities of each option taken by itself; batches do not matter."
    lm = LM(LMConfig(tok.vocab_size, dim=16, n_layers=1, n_heads=2, max_len=128), seed=3).eval()
    questions = langgame("return value index class sequence of is all array function yellow banana letter success".split(), 40, seed=2)
    def score(prompt, option):
        q, a = tok.encode(prompt), tok.encode(option)
        with torch.no_grad(): logp = lm(torch.tensor([q + a])).logits.log_softmax(-1)[0]
        return sum(logp[len(q) - 1 + i, t].item() for i, t in enumerate(a))
    want = [max(options, key=lambda o: score(prompt, o)) == options[0] for prompt, options in questions]
    assert mcq_answers(lm, tok, questions) == mcq_answers(lm, tok, questions, batch_size=7) == want and 0 < sum(want) < 40
    with pytest.raises(ValueError, match="no questions"): mcq_answers(lm, tok, [])


def test_respelt_texts_keep_their_bytes_and_differ_between_spellings_and_seeds(tok):
    texts = [TEXT, "", "the weather"]
    cuts = {how: Respelt(tok, how, .3).encode_batch(texts) for how in SPELLINGS}
    for ids in cuts.values(): assert [tok.decode(i) for i in ids] == texts
    assert cuts["plain"] == tok.encode_batch(texts)
    for how in ("stochastok", "dropout"):
        assert cuts[how] == Respelt(tok, how, .3).encode_batch(texts) != Respelt(tok, how, .3, seed=1).encode_batch(texts)
        word = {tuple(i) for i in Respelt(tok, how, .3).encode_batch([" weather"*10]*200)}
        assert len(word) > 3, how                            # one word, many cuts
    assert {tuple(i) for i in Respelt(tok, "plain").encode_batch([" weather"]*9)} == {tuple(tok.encode(" weather"))}


def test_spellings_read_equal_tokens_of_the_same_model_and_the_same_questions(monkeypatch):
    "The three trainings as they are run: a spy notes weights and batches."
    seen, fit, tok = [], tokenlab.training.fit, load_lab("lab-draft")[1]
    def spy(lm, batches, *, steps, **kw):
        seen.append((lm.embed.weight.detach().clone(), [batches(s) for s in range(steps)]))
        return fit(lm, lambda s: seen[-1][1][s], steps=steps, **kw)
    monkeypatch.setattr(tokenlab.training, "fit", spy)
    monkeypatch.setattr(tokenlab.lm, "bits_per_byte", lambda *a, **k: 1.)
    found = spelling_scores(0, name="lab-draft", steps=8, lessons=2, n_test=40)
    further, lessons = seen[::2], seen[1::2]
    assert len(seen) == 6 and set(SPELLINGS) <= found.keys() and [sum(b["ids"].numel() for b in made) for _, made in further] == [8*2048]*3
    assert all((b["ids"] >= 0).all() for _, made in further for b in made)
    assert all((weights == further[0][0]).all() for weights, _ in further)                     # each begins with the untouched model
    assert not any((a[0] == b[0]).all() for a, b in zip(further, lessons))                     # and plays after its further training
    for _, made in lessons:
        for a, b in zip(made, lessons[0][1]): assert (a["ids"] == b["ids"]).all() and (a["targets"] == b["targets"]).all()
        for row in made[0]["ids"]:
            ids = row[row >= 0].tolist()
            question, mark, answer = tok.decode(ids).partition("Answer:")
            assert ids == tok.encode(question + mark) + tok.encode(answer)
    rate = [sum(b["ids"].numel() for b in m)/sum(len(tok.decode_bytes(r.tolist())) for b in m for r in b["ids"]) for _, m in further]
    assert rate[1] > 1.03*rate[0] and rate[2] > 1.03*rate[0]                                   # tokens a byte: both cut finer


def test_errors(tok):
    with pytest.raises(ValueError, match="choose from"): Respelt(tok, "backwards")
    with pytest.raises(ValueError, match="nothing to split"): StochasTok(ByteTokenizer())
    with pytest.raises(ValueError, match="proportion"): StochasTok(tok, -1)
    with pytest.raises(ValueError, match="vocabulary has"): StochasTok(tok).expand([tok.vocab_size])
    with pytest.raises(ValueError, match="probability"): tok.encode("a", dropout=2, seed=0)
    with pytest.raises(ValueError, match="choose from"): langgame(["a"], 1, kinds=["rhymes"])
    with pytest.raises(ValueError, match="too few"): langgame(["aa", "ab"], 3)
