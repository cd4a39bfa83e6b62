"Supertokens: chunks partition the text, limits, and the library's trainer on the same chunks."
import json, random, warnings
import pytest, tokenizers
from hypothesis import given, settings, strategies as st
from pydoc_data.topics import topics
from tokenizers import models, pre_tokenizers, trainers
from tokenlab.tokenizers.bpe import bytes_per_token, train_bpe
from tokenlab.tokenizers.core import Tokenizer
from tokenlab.tokenizers.supertokens import BINS, random_chunks, train_supertokens

PAGES = [t for _, t in sorted(topics.items())]
TRAIN, HELD_OUT = PAGES[1::4], PAGES[::8]


@given(st.text(max_size=300), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_chunks_partition(text, seed):
    chunks = list(random_chunks(text, random.Random(seed)))
    assert "".join(chunks) == text
    assert all(4 <= len(c) <= 23 for c in chunks[:-1]) and all(chunks)


def test_lengths_follow_the_bins():
    sizes = [len(c) for c in random_chunks("x"*400_000, random.Random(0))][:-1]
    total = sum(BINS.values())
    for (low, high), weight in BINS.items():
        share = sum(low <= n <= high for n in sizes)/len(sizes)
        assert abs(share - weight/total) < .01, (low, high)


def test_limits():
    text = PAGES[3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train_supertokens([text], 300, bins={(1, 1): 1.}).vocab_size == 256
        whole = train_supertokens([text]*3, 400, bins={(10**6, 10**6): 1.}, normalizer=None)
    assert whole.merges == train_bpe([text]*3, 400, pattern=None, min_frequency=2, max_token_length=29).merges


@pytest.mark.parametrize("length", [6, 30])
def test_equals_the_library(length):
    "The library keeps tokens below its max_token_length; so ours is one less."
    rng = random.Random(0)
    chunks = [c for t in TRAIN for c in random_chunks(t, rng)]
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.train_from_iterator(chunks, trainers.BpeTrainer(vocab_size=1200, min_frequency=2, max_token_length=length, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert json.loads(hf.to_str())["model"]["merges"] == train_supertokens(TRAIN, 1200, max_token_length=length - 1, normalizer=None).to_json()["model"]["merges"]


def test_saves_encodes_and_helps(tmp_path):
    tok = train_supertokens(TRAIN, 1500, special_tokens=["<s>"])
    assert tok.special_tokens == {"<s>": 1499} and max(map(len, tok.tokens)) <= 29
    assert any(len(t.split()) > 1 for t in tok.tokens)
    hf, back = tok.to_hf(), Tokenizer.load(tok.save(tmp_path))
    for text in HELD_OUT + ["", "cafe\u0301", "a  b\n\n"]: assert hf.encode(text).ids == tok.encode(text) == back.encode(text)
    assert train_supertokens(TRAIN, 600, seed=0).merges != train_supertokens(TRAIN, 600, seed=1).merges


@pytest.mark.parametrize("bins", [{}, {(0, 3): 1.}, {(5, 3): 1.}, {(1, 2): -1.}, {(1, 2): 0.}])
def test_refuses_bins(bins):
    with pytest.raises(ValueError, match="bins"): train_supertokens(TRAIN, 300, bins=bins)
