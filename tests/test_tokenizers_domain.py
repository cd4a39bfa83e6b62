"Domain and character tokenizers: sizes, added tokens, the library's trainer, noise and its alignment."
import json, random, unicodedata, warnings
import numpy as np, pytest, tokenizers
from hypothesis import given, settings, strategies as st
from pydoc_data.topics import topics
from tokenizers import models, pre_tokenizers, trainers
from tokenlab.tokenizers.bpe import bytes_per_token, train_bpe
from tokenlab.tokenizers.core import Tokenizer, cut
from tokenlab.tokenizers.domain import (SPECIAL_TOKENS, boundary_stability, custom_tokens, cuts, families, noisy, padding_tokens, term_tokens, train_characters, train_domain)

PAGES = [t for _, t in sorted(topics.items())]
TRAIN, HELD_OUT = PAGES[1::4], PAGES[::8]
pytestmark = pytest.mark.filterwarnings("ignore:the merges ran out")


@pytest.fixture(scope="module")
def domain(): return train_domain(TRAIN, 4096, min_frequency=2)


@pytest.fixture(scope="module")
def characters(): return train_characters(TRAIN, 2048)


def test_size_is_a_power_of_two(domain, characters):
    assert (domain.vocab_size, characters.vocab_size) == (4096, 2048)
    assert train_characters(TRAIN, 1500).vocab_size == 2048
    assert train_characters(TRAIN, 1500, power_of_two=False).vocab_size == 1500
    assert len(set(domain.tokens)) == 4096 # no token of the list that the merges have found is added again


def test_list_tokens_are_one_id_anywhere(domain):
    for token in ("1934", "(b)", "<table", "  ", "https://"):
        ids = [i for i, t in enumerate(domain.tokens) if t == token.encode()]
        assert len(ids) == 1
        if ids[0] in domain.added_tokens.values(): assert ids[0] in domain.encode(f"x{token}y")


def test_families():
    assert len(custom_tokens(["years"])) == 2050 - 1776
    assert custom_tokens([], terms=["F. Supp. 2d", "a"]) == ["2d", "F.", "Supp."]
    assert all(len(t) > 1 for t in custom_tokens()) and len(set(custom_tokens())) == len(custom_tokens())
    with pytest.raises(ValueError, match="choose from"): custom_tokens(["latex"])
    with pytest.raises(ValueError, match="too small"): train_domain(TRAIN, 1024)


@pytest.mark.parametrize("max_chars", [2, 3, 4])
def test_equals_the_library(max_chars):
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [unicodedata.normalize("NFKC", t) for t in TRAIN]
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, max_token_length=max_chars + 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    ours = train_characters(TRAIN, 913, max_chars=max_chars, power_of_two=False)
    assert json.loads(hf.to_str())["model"]["merges"] == ours.to_json()["model"]["merges"]


def test_bound_on_length(characters):
    named = set(characters.special_tokens.values()) | set(characters.added_tokens.values())
    assert max(len(t) for i, t in enumerate(characters.tokens) if i not in named) == 3


def test_saves_and_encodes_as_the_library(domain, characters, tmp_path):
    for k, tok in enumerate((domain, characters)):
        hf, back = tok.to_hf(), Tokenizer.load(tok.save(tmp_path/f"{k}.json"))
        for text in HELD_OUT + ["ﬁne ½", "12019 f(a)", "\n\n\n   x", "", "日本"]:
            assert hf.encode(text).ids == tok.encode(text) == back.encode(text)
            assert tok.decode(tok.encode(text)) == unicodedata.normalize("NFKC", text)
        assert tok.special_tokens == back.special_tokens and list(tok.special_tokens) == list(SPECIAL_TOKENS)


def test_beats_other_text_of_the_same_size():
    law = ["The licensee shall indemnify the licensor against all claims arising hereunder, irrevocably and without limitation.\n"]*60
    mine, other = train_domain(law, 1024, custom=(), min_frequency=2, power_of_two=False), train_domain(TRAIN, 1024, custom=(), power_of_two=False)
    assert bytes_per_token(mine, law) > 2*bytes_per_token(other, law)
    assert term_tokens(mine, ["licensor", "indemnify"]) < term_tokens(other, ["licensor", "indemnify"])


@given(st.text(st.characters(codec="utf8"), max_size=200), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_noise_keeps_its_places(text, rate, seed):
    damaged, places = noisy(text, rate, seed)
    assert len(damaged) == len(places)
    kept = places[places >= 0]
    assert (np.diff(kept) > 0).all() and all(damaged[i] == text[p] for i, p in enumerate(places) if p >= 0)
    assert (damaged, places.tolist()) == (noisy(text, rate, seed)[0], noisy(text, rate, seed)[1].tolist())


def test_noise_rate():
    text = "abcdefgh "*5000
    assert noisy(text, 0.)[0] == text
    hurt = [1 - (noisy(text, rate)[1] >= 0).sum()/len(text) for rate in (.02, .1, .5)]
    assert hurt == sorted(hurt) and .01 < hurt[0] < .03 and .07 < hurt[1] < .13
    with pytest.raises(ValueError, match="between 0 and 1"): noisy("x", 2.)


def test_stability_by_hand():
    "Tokens `ab` and `cd`; damage that shifts nothing leaves cuts, a wrong pairing moves them."
    tok = train_bpe(["abab"]*9, 257, pattern=None)                     # merges a b
    clean = "ababxabab"
    assert cuts(tok, clean).tolist() == [True, False, True, False, True, True, False, True, False, True]
    assert boundary_stability(tok, clean, clean, np.arange(9)) == 1.
    long = "xyzw"*20
    assert boundary_stability(tok, long, long[:40] + "Q" + long[41:], np.r_[np.arange(40), -1, np.arange(41, 80)]) == 1.


def test_short_tokens_keep_their_cuts(characters):
    text = unicodedata.normalize("NFKC", "\n".join(HELD_OUT)[:50_000])
    damaged = noisy(text, .05)
    free = train_domain(TRAIN, 2048, custom=(), min_frequency=1)
    assert boundary_stability(characters, text, *damaged) > boundary_stability(free, text, *damaged) + .005


def test_stability_needs_normal_text(characters):
    with pytest.raises(ValueError, match="NFKC"): cuts(characters, "ﬁ")
