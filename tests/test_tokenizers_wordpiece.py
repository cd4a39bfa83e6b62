"WordPiece: equal to the tokenizers library, trained as counted again, and exact over bytes."
import json, math
from collections import Counter
import numpy as np, pytest, tokenizers
from hypothesis import given, settings, strategies as st
from tokenlab.corpora import load, parallel
from tokenlab.tokenizers.bpe import count_pieces
from tokenlab.tokenizers.core import BYTE_ORDER, Tokenizer
from tokenlab.tokenizers.wordpiece import INSIDE, SPECIAL, WordPiece, from_json, learn_pieces, read_vocab_txt, train_wordpiece

ODD = ["", " ", "  a", "Où est-ce?", "中文 and English", "a\u0301\u200d\0\x1f b", "👩‍👩‍👧 🇩🇪", "x" * 100, "x" * 101, "İstanbul ΟΔΟΣ ΣΑΣ", "a\u00a0b\u3000c\u2028d\x85e", "don't [SEP] stop.", "\ufffd\ufeffz", "½ ² ٣",
       "".join(map(chr, range(0x300, 0x370))), "שלום עולם", "こんにちは世界", "a.b,c!?«d»", "##a a##a", "\n\t\r"]


@pytest.fixture(scope="module")
def code(): return load("python-code", split="valid")["text"][:40]


@pytest.fixture(scope="module")
def trained(code): return train_wordpiece(code, 1200, special_tokens=["<eos>"])


@pytest.fixture(scope="module")
def bert(data_dir):
    "A file of the library's own trainer on many languages."
    texts = [r["text"] for r in parallel("udhr") if r["article"] == 1][::6]
    hf = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    hf.normalizer, hf.pre_tokenizer, hf.decoder = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer(), tokenizers.decoders.WordPiece()
    hf.train_from_iterator(texts, tokenizers.trainers.WordPieceTrainer(vocab_size=3000, limit_alphabet=500, special_tokens=list(SPECIAL), show_progress=False))
    return json.loads(hf.to_str())


@pytest.mark.parametrize("options", [{}, dict(lowercase=False), dict(strip_accents=False), dict(lowercase=False, strip_accents=True), dict(clean_text=False), dict(handle_chinese_chars=False)])
def test_bert_files_equal_the_library_on_all_languages(bert, options, tmp_path):
    content = bert | dict(normalizer=bert["normalizer"] | options)
    ours, theirs = from_json(content), tokenizers.Tokenizer.from_str(json.dumps(content))
    again = Tokenizer.load(ours.save(tmp_path))
    assert again.to_json() == ours.to_json()
    texts = [r["text"] for r in parallel("udhr") if r["article"] == 2]
    assert len(texts) > 500
    for text in [*texts, *ODD]:
        ids = theirs.encode(text).ids
        assert ours.encode(text, special="allow") == ids == again.encode(text, special="allow"), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text
        array, offsets = ours.encode_array(text)
        assert array.tolist() == ours.encode(text) and (not len(array) or offsets[-1] == len(ours.normalize(text).encode()))


def test_bert_opens_in_transformers(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = from_json(bert)
    ours.save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path/"tokenizer.json"))
    for text in ODD: assert fast.encode(text, add_special_tokens=False) == ours.encode(text, special="allow")


def test_vocabulary_files(bert, tmp_path):
    words = [w for w, _ in sorted(bert["model"]["vocab"].items(), key=lambda item: item[1])]
    (tmp_path/"vocab.txt").write_text("\n".join(words) + "\n", encoding="utf8")
    ours, same = read_vocab_txt(tmp_path/"vocab.txt"), from_json(bert)
    for text in ODD: assert ours.encode(text, special="allow") == same.encode(text, special="allow")
    assert ours.special_tokens == {n: words.index(n) for n in SPECIAL}
    with pytest.raises(FileNotFoundError, match="give a vocab.txt"): read_vocab_txt(tmp_path/"none")
    (tmp_path/"twice").write_text("a\na\n")
    with pytest.raises(ValueError, match="lists a token twice"): read_vocab_txt(tmp_path/"twice")


def test_published_in_part_from_offsets(bert):
    "Each token's bytes of the normalised text are its own, but for dropped spaces."
    ours, text = from_json(bert), "Alle Menschen sind frei, und gleich."
    ids, offsets = ours.encode_array(text)
    data = ours.normalize(text).encode()
    for i, a, b in zip(ids, offsets, offsets[1:]):
        if ours.words[i] != "[UNK]": assert data[a:b].decode().strip() == ours.words[i].removeprefix("##")


def log_likelihood(tokens):
    counts = Counter(tokens)
    return sum(n * math.log(n / len(tokens)) for n in counts.values())


def merged(word, pair):
    out, i = [], 0
    while i < len(word):
        hit = tuple(word[i:i+2]) == pair
        out.append((pair[0][0] + pair[1][0], pair[0][1]) if hit else word[i]); i += 1 + hit
    return out


@given(st.dictionaries(st.text("abc", min_size=1, max_size=7).map(str.encode), st.integers(1, 5), min_size=2, max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_merge_is_the_best_by_counting_again(pieces, by_count):
    "The gain of the chosen merge is the largest of all, by the likelihood of the corpus before and after."
    words = {p: [(p[i:i+1], i > 0) for i in range(len(p))] for p in pieces}
    corpus = lambda w: [t for p in w for t in w[p] * pieces[p]]
    made = learn_pieces(pieces, 518, score="count" if by_count else "likelihood")[512:]
    for token in [*made, None]:
        pairs = Counter()
        for p, w in words.items():
            for x in zip(w, w[1:]): pairs[x] += pieces[p]
        def value(pair):
            if by_count: return pairs[pair]
            if pair[0] == pair[1]: return simple_gain(pairs[pair], words, pieces, pair)
            return log_likelihood(corpus({p: merged(w, pair) for p, w in words.items()})) - log_likelihood(corpus(words))
        values = {pair: value(pair) for pair in pairs}
        if token is None:  # it stopped: because it had enough, or because nothing gains
            assert len(made) == 6 or max(values.values(), default=0) < 1e-9
            break
        chosen = [pair for pair in pairs if (pair[0][0] + pair[1][0], pair[0][1]) == token and values[pair] >= max(values.values()) - 1e-9]
        assert chosen, (token, values)
        words = {p: merged(w, chosen[0]) for p, w in words.items()}
        if len(chosen) > 1 or made.count(token) > 1: break  # two spellings of one token: two tokens for the loop, one here


def simple_gain(n, words, pieces, pair):
    "Of a pair of equal tokens: its count may be more than can be merged (aaa), and the formula takes half of the token's count at most."
    counts = Counter(t for p, w in words.items() for t in w * pieces[p])
    a = counts[pair[0]]
    n, N, f = min(n, a // 2), sum(counts.values()), lambda c: c * math.log(c) if c else 0.
    return f(n) + f(a - 2 * n) - f(a) - f(N - n) + f(N)


def test_merges_by_count_follow_the_library(code):
    "With `count`, the vocabulary of the library's trainer over the same pieces, but for ties."
    texts = [t[:3000] for t in code[:15]]
    ours = {(INSIDE if i else "") + "".join(map(chr, t)) for t, i in learn_pieces(count_pieces(texts), 900, score="count") if t.isascii()}
    hf = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.train_from_iterator(texts, tokenizers.trainers.WordPieceTrainer(vocab_size=900 - 512 + 150, continuing_subword_prefix=INSIDE, special_tokens=["[UNK]"], show_progress=False))
    theirs = {w.replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t") for w in hf.get_vocab()}
    long = {w for w in theirs if len(w.removeprefix(INSIDE)) > 1}
    assert len(long & ours) > .95 * len(long)


@given(st.binary(max_size=80))
@settings(max_examples=150, deadline=None)
def test_round_trip(data):
    ids = TOY.encode(data)
    assert TOY.decode_bytes(ids) == data and TOY.encode_array(data)[1][-1] == len(data) and TOY.encode_array(data)[0].tolist() == ids


TOY = train_wordpiece(["to be or not to be, that is the question ##be"] * 3, 530)


def test_training(trained, code):
    assert trained.vocab_size == 1200 and trained.special_tokens == {"<eos>": 1199}
    assert trained.tokens[:512] == [bytes([b]) for b in BYTE_ORDER] * 2
    assert len(set(trained.words)) == 1200
    assert train_wordpiece(code, 1200, special_tokens=["<eos>"]).words == trained.words


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", None, r"\d|[^\d]+"])
def test_saved_files_open_in_the_library(tmp_path, code, pattern, open_as_saved):
    tok = train_wordpiece([t[:4000] for t in code[:10]], 700, pattern=pattern, special_tokens=["<eos>"])
    open_as_saved(tok, tmp_path, [*[t[:3000] for t in code[10:13]], *ODD, "a<eos> b"], code[11][:500])


def test_greedy_equals_the_definition(trained):
    words = set(trained.words)
    rng = np.random.default_rng(0)
    for _ in range(200):
        word = "".join(rng.choice(list("selfdinrt_"), size=rng.integers(1, 14)))
        out, at = [], 0
        while at < len(word):
            end = max(e for e in range(at + 1, len(word) + 1) if (INSIDE if at else "") + word[at:e] in words)
            out.append((INSIDE if at else "") + word[at:end]); at = end
        pieces = [trained.words[i] for i in trained.encode(word)]
        if "_" not in word: assert pieces == out


def test_documents_in_any_order_and_pieces_from_the_plain_count(trained, code, monkeypatch):
    assert train_wordpiece(sorted(code), 1200, special_tokens=["<eos>"]).to_json() == trained.to_json()
    monkeypatch.setattr("tokenlab.tokenizers.wordpiece.count_pieces", count_pieces)
    assert train_wordpiece(code, 1200, special_tokens=["<eos>"]).to_json() == trained.to_json()


def test_bad_arguments():
    with pytest.raises(ValueError, match="too small"): train_wordpiece(["a"], 300)
    with pytest.raises(ValueError, match="no text"): train_wordpiece([], 600)
    with pytest.raises(ValueError, match="likelihood"): train_wordpiece(["ab"], 600, score="ratio")
    with pytest.warns(UserWarning, match="ran out"): train_wordpiece(["ab"], 600)
    with pytest.raises(ValueError, match="no word"): WordPiece(["a"], unk_token="[UNK]")
    tok = WordPiece(["a"], unk_token=None)
    with pytest.raises(ValueError, match="cannot be cut"): tok.encode("b")
