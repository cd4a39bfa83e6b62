"Less-is-Better: the list after each document as the authors' code has it; every rule by hand; a lossless tokenizer."
import math, os, random, sys
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from tokenlab.tokenizers.core import Tokenizer
from tokenlab.tokenizers.lib import Lexicon, Race, boundary_scores, description_length, lib_documents, train_lib, unit_tokenizer
from tokenlab.tokenizers.merge_free import MergeFree

RHYME = "thecatsatonthemat thedogsatonthecat thecatranfromthedog thedogranafterthecat thematisred thecatisfat thedogisfat afterthecatthedog".split()
HAND = ["t", "h", "e", "c", "a", "th", "the", "thec", "cat", "at"]


def test_authors_code():
    "With TOKENLAB_LIB naming a folder with the authors' model.py, structures.py and br-text.txt: the same list and lives after each of 100 documents."
    folder = os.environ.get("TOKENLAB_LIB")
    if not folder: pytest.skip("TOKENLAB_LIB names no folder: authors' code not at hand")
    sys.path.insert(0, folder)
    try: import model
    finally: sys.path.remove(folder)
    lines = [l.strip().replace(" ", "") for l in (Path(folder)/"br-text.txt").open() if l.strip()]
    rng = random.Random(5)
    docs = [rng.sample(lines, 200) for _ in range(60)]
    chars = list(dict.fromkeys("".join(docs[0])))
    memory, mine = model.TrieList(), Lexicon(chars, seed=7)
    model.to_dropout.clear()
    for c in chars: memory.append(c); model.to_dropout[c] = model.life
    random.seed(7)
    for _ in range(100):
        doc = random.choice(docs)
        assert doc == mine.rng.choice(docs)
        model.reading(memory, doc); mine.read(doc)
        assert memory.par_list == mine.order and model.to_dropout == mine.lives


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=30, unique=True), st.text("abcd", max_size=20), st.integers(0, 20))
def test_two_longest(units, text, i):
    found = sorted((u for u in units if text.startswith(u, i) and i < len(text)), key=len, reverse=True)
    assert Lexicon(units).two(text, i) == tuple([*found, "", ""][:2])


def test_moves():
    for i in range(1, 10):
        for step in range(-i, 12):
            if not step: continue
            lexicon, rest = Lexicon("abcdefghij"), [u for j, u in enumerate("abcdefghij") if j != i]
            lexicon.move(i, step)
            want = rest[:i + step] + ["abcdefghij"[i]] + rest[i + step:] if i + step < 10 else rest
            assert lexicon.order == want and ("abcdefghij"[i] in lexicon.place) == (i + step < 10)


def test_steps_of_a_document():
    lexicon = Lexicon("abcdefghij", memory_out=0)
    lexicon.settle([("j", -1), ("b", 1), ("a", -1), ("a", 1), ("zz", 1)])
    assert "".join(lexicon.order) == "acbdefghji"[:0] + "".join(reference("abcdefghij", [("j", -1), ("b", 1)]))

def reference(units, verdicts):
    order = list(units)
    for u, sign in verdicts:
        i = order.index(u)
        order.remove(u)
        order.insert(i + sign*(int(i*.2) + 1), u)
    return order


def test_race_branches():
    lexicon = Lexicon(HAND)
    assert lexicon.loses(Race(0, ["thec", "at"], ["the", "cat"]))            # ranks
    assert not lexicon.loses(Race(0, ["the", "cat"], ["thec", "at"]))
    assert lexicon.loses(Race(0, ["th", "e", "cat"], ["the", "cat"]))        # units
    assert lexicon.loses(Race(0, ["the", ""], ["th", "e", "c", "a"]))        # unknown characters
    assert not lexicon.loses(Race(0, ["the"], ["th", ""]))


def by_hand(order, unit, depth):
    "All ways to cut in two, the best by ranks, as the authors choose."
    if depth == 0: return [unit]
    ways = sorted((order.index(a), order.index(b), a, b) for a, b in ((unit[:i], unit[i:]) for i in range(1, len(unit))) if a in order and b in order)
    own = order.index(unit) if unit in order else len(order)
    if not ways or max(ways[0][:2]) >= own: return [unit]
    return by_hand(order, ways[0][2], depth - 1) + by_hand(order, ways[0][3], depth - 1)

@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=30, unique=True), st.text("abc", min_size=1, max_size=9), st.integers(0, 3))
@settings(deadline=None)
def test_decompose(units, text, depth):
    lexicon = Lexicon(units)
    for unit in [*units, text]: assert lexicon.decompose(unit, depth=depth) == by_hand(units, unit, depth)
    whole, i = lexicon.segment(text), 0
    for part in whole:
        longest = max((u for u in units if text.startswith(u, i)), key=len, default=text[i])
        assert part == longest
        i += len(part)
    assert i == len(text) and lexicon.segment(text, decompose=True) == [p for u in whole for p in by_hand(units, u, 2)]


@given(st.lists(st.tuples(st.text("ab", max_size=8), st.sets(st.integers(1, 7)), st.sets(st.integers(1, 7))), max_size=5))
def test_boundary_scores(rows):
    cut = lambda text, places: [text[a:b] for a, b in zip([0, *sorted(places)], [*sorted(places), len(text)])]
    rows = [(t, {i for i in f if i < len(t)}, {i for i in w if i < len(t)}) for t, f, w in rows]
    kinds = [(i in f, i in w) for t, f, w in rows for i in range(1, len(t))]
    hit, made, true = kinds.count((True, True)), sum(a for a, _ in kinds), sum(b for _, b in kinds)
    got = boundary_scores([cut(t, f) for t, f, _ in rows], [cut(t, w) for t, _, w in rows])
    precision, recall = hit/made if made else 1., hit/true if true else 1.
    assert (got["precision"], got["recall"]) == (precision, recall)
    assert math.isclose(got["f1"], 2*precision*recall/(precision + recall) if hit else float(not made and not true))


def test_lives():
    lexicon = Lexicon("ab", life=3, memory_out=0)
    for n in range(3):
        assert lexicon.order == ["a", "b"]
        lexicon.read(["a"] if n == 0 else ["x"])
    assert lexicon.order == ["a"]


def test_two_strikes_in_one_document():
    lexicon = Lexicon(["a", "b"], memory_in=1.)
    lexicon.read(["ab"]); assert "ab" not in lexicon.place
    lexicon.read(["ab"]); assert "ab" not in lexicon.place
    lexicon.read(["ab", "ab"]); assert lexicon.order[-1] == "ab"


def test_list_and_index_agree():
    lexicon = Lexicon(dict.fromkeys("".join(RHYME)), seed=3)
    for _ in range(200):
        lexicon.read(RHYME)
        assert len(set(lexicon.order)) == len(lexicon.order) and lexicon.place == {u: i for i, u in enumerate(lexicon.order)}
        assert all(len(u) <= 12 for u in lexicon.order)
    assert {"thecat", "thedog"} & set(lexicon.order)


@pytest.fixture(scope="module")
def lib(): return train_lib(["the cat sat on the mat\nthe dog sat on the cat\nünder dem Tisch\n"*20], 300, epochs=150, sentences=10, special_tokens=["<s>"])

@given(st.one_of(st.text(max_size=60), st.binary(max_size=40)))
@settings(max_examples=150, deadline=None)
def test_bytes_come_back(lib, data): assert lib.decode_bytes(lib.encode(data)) == (data if isinstance(data, bytes) else data.encode())


def test_tokenizer(lib, tmp_path):
    text = "the cat sat under the dog\n"
    tokens, out, i = set(lib.tokens[:-1]), [], 0
    while i < len(text):
        n = max(n for n in range(1, len(text) - i + 1) if text[i:i+n].encode() in tokens)
        out.append(text[i:i+n]); i += n
    assert [lib.decode([t]) for t in lib.encode(text)] == out
    again = Tokenizer.load(lib.save(tmp_path/"lib.json"))
    assert isinstance(again, MergeFree) and again.pattern is None and again.encode(text) == lib.encode(text) and again.special_tokens == lib.special_tokens
    assert train_lib([text*9], 290, epochs=30, sentences=2, seed=1).tokens == train_lib([text*9], 290, epochs=30, sentences=2, seed=1).tokens


def test_description_length():
    bytes_only = unit_tokenizer([], 256)
    got = description_length(bytes_only, ["aab"])
    assert math.isclose(got["text_bits"], 2*math.log2(1.5) + math.log2(3)) and got["lexicon_bits"] == 6 and math.isclose(got["bits_per_byte"], (got["text_bits"] + 6)/3)
    assert description_length(unit_tokenizer(["abcdef"], 257), ["abcdef"*50])["bits_per_byte"] < description_length(bytes_only, ["abcdef"*50])["bits_per_byte"]


def test_errors():
    with pytest.raises(ValueError, match="no text"): train_lib([], 300)
    with pytest.raises(ValueError, match="one text"): train_lib("text", 300)
    with pytest.raises(ValueError, match="too small"): unit_tokenizer(["ab"], 255)
    with pytest.raises(ValueError, match="max_len"): Lexicon("ab", max_len=1)
    with pytest.raises(ValueError, match="at least 1 line"): lib_documents(["a"], sentences=0)
    with pytest.raises(ValueError, match="no text to measure"): description_length(unit_tokenizer([], 256), [""])
    with pytest.warns(UserWarning, match="give more text"): unit_tokenizer(["ab"], 300)
