"Compiled pre-tokenizers: the cuts of the published expressions, on all of Unicode, in `regex` and in the Rust libraries."
import itertools, json, time
import numpy as np, pytest, regex, tiktoken, tokenizers
from hypothesis import given, settings, strategies as st
from tokenlab.tokenizers.core import as_bytes, as_text
from tokenlab.tokenizers.bpe import PATTERNS, split
from tokenlab.tokenizers.pretokenize import (BLOCKS, DIGITS, EOL, L, LOW, N, PUNCTUATION, S, TIKTOKEN, UP, Pretokenizer, boundaries, class_table, compile_pattern,
                                             cut_into, pretokenizer_from_json)

NAMED = PATTERNS | TIKTOKEN # as published
RULES = ["gpt2", "cl100k", "o200k", "qwen2", "cl100k_base", "r50k_base"]
ALL = [*itertools.product([None, *RULES], [None, *DIGITS])]
ALPHABET = [c.encode() for c in "azAZsSſ'1²日ʰ\u0301\u0903 \t\xa0\u3000\n\r\x1c!/ǅéÉtdmvrlLREV"] + [b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
                                                                                                 b"'re", b"'VE", b"ll", b"12345", b"  ", b"\r\n", "😀".encode(), "\U00010400".encode()]
EVERY = [i for i in range(0x110000) if not 0xd800 <= i < 0xe000]


def slow(cutter, data): return [as_bytes(p) for p in cutter.split_slowly(as_text(data))]

def published(name, text):
    "The expression as it is published, by `regex` alone."
    return [m.group().encode() for m in regex.finditer(NAMED[name], text)]


@pytest.fixture(scope="module")
def flags():
    table, points = class_table(), np.arange(0x110000)
    return table[BLOCKS + (table[points >> 8].astype(int) << 8) + (points & 255)]


@pytest.mark.parametrize("flag, expression", [(L, r"\p{L}"), (N, r"\p{N}"), (S, r"\s"), (EOL, r"[\r\n]"), (UP, r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"), (LOW, r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")])
def test_class_of_every_code_point(flags, flag, expression):
    text = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    expected = np.zeros(0x110000, dtype=bool)
    for m in regex.finditer(expression + "+", text): expected[m.start():m.end()] = True
    assert np.array_equal(flags & flag != 0, expected)


def test_every_code_point_is_read():
    text = "".join(map(chr, EVERY))
    data, lengths = text.encode(), np.array([1 if i < 0x80 else 2 if i < 0x800 else 3 if i < 0x10000 else 4 for i in EVERY])
    ends, kinds = np.cumsum(lengths), Pretokenizer(None, digits="single")
    numbers = {m.start() for m in regex.finditer(r"\p{N}", text)}
    expected = sorted({0, len(data)} | {int(ends[i]) for i in numbers} | {int(ends[i] - lengths[i]) for i in numbers})
    assert kinds.boundaries(data).tolist() == expected


@pytest.mark.parametrize("name", RULES)
def test_all_short_texts(name):
    cutter = Pretokenizer(name)
    for n in (1, 2, 3):
        for x in itertools.product(ALPHABET, repeat=n):
            assert cutter.split(b"".join(x)) == slow(cutter, b"".join(x))


@pytest.mark.parametrize("name, digits", ALL)
def test_random_texts_of_the_critical_characters(name, digits):
    rng, cutter = np.random.default_rng(1), Pretokenizer(name, digits=digits)
    assert cutter.kind is not None
    for _ in range(600):
        data = b"".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=rng.integers(1, 40)))
        assert cutter.split(data) == slow(cutter, data), data


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_any_text(text):
    for name in RULES: assert Pretokenizer(name).split(text) == published(name, text)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(ALPHABET) | st.characters(codec="utf8").map(str.encode), max_size=30).map(b"".join), st.sampled_from(ALL))
def test_any_text_around_the_critical_characters(data, rule):
    cutter = Pretokenizer(rule[0], digits=rule[1])
    assert cutter.split(data) == slow(cutter, data)


@settings(deadline=None, max_examples=300)
@given(st.binary(), st.sampled_from(ALL))
def test_any_bytes(data, rule):
    cutter = Pretokenizer(rule[0], digits=rule[1])
    pieces = cutter.split(data)
    assert b"".join(pieces) == data and all(pieces) and pieces == slow(cutter, data)


SURROUNDINGS = ["{}", "a{}b", "A{}b", "a{}B", "{0}{0}", " {} ", "  {}", "1{}2", "!{}!", "'{}", "{}'s", "\n{}\n", "a {}a", "!{}", "'s{}", "\t{}1"]

@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_every_code_point_in_surroundings(name):
    for where in SURROUNDINGS:
        for at in range(0, len(EVERY), 4096):
            text = "|x\n".join(where.format(chr(i)) for i in EVERY[at:at + 4096])
            assert Pretokenizer(name).split(text) == published(name, text), (where, hex(EVERY[at]))


@pytest.mark.parametrize("where", ["a{}b", " {} ", "'{}", "1{}\n"])
def test_every_assigned_code_point_in_surroundings(where):
    text = "|x\n".join(where.format(chr(i)) for i in EVERY if i < 0x3400 or 0x9f00 < i < 0xac10 or 0xd700 < i < 0x17010 or 0x1ae00 < i < 0x20010 or 0xe0000 <= i < 0xe0200)
    for name in ("gpt2", "cl100k", "o200k"): assert Pretokenizer(name).split(text) == published(name, text)


def test_all_languages(data_dir):
    texts = ["\n".join(json.loads(line)["articles"]) for line in (data_dir/"udhr.jsonl").open(encoding="utf8")]
    assert len(texts) == 521
    for name in ("gpt2", "cl100k", "o200k"):
        cutter = Pretokenizer(name)
        for text in texts: assert cutter.split(text) == published(name, text)


@pytest.mark.parametrize("name", RULES[:5])
def test_tiktoken_cuts_the_same(name):
    # every piece is a token, so that the ids tell the pieces
    rng, parts = np.random.default_rng(2), [p.decode() for p in ALPHABET if p.decode(errors="ignore").encode() == p]
    texts = ["".join(parts[i] for i in rng.integers(len(parts), size=40)) for _ in range(200)]
    cut = [Pretokenizer(name).split(t) for t in texts]
    ranks = {p: i for i, p in enumerate(dict.fromkeys([*(bytes([b]) for b in range(256)), *(p for pieces in cut for p in pieces)]))}
    peer = tiktoken.Encoding("pieces", pat_str=NAMED[name], mergeable_ranks=ranks, special_tokens={})
    for text, pieces in zip(texts, cut): assert peer.encode_ordinary(text) == [ranks[p] for p in pieces]


def peer_of(cutter):
    model = dict(type="BPE", vocab={}, merges=[])
    peer = tokenizers.Tokenizer.from_str(json.dumps(dict(version="1.0", added_tokens=[], pre_tokenizer=cutter.to_json(), model=model))).pre_tokenizer
    return lambda text: [len(p) for p, _ in peer.pre_tokenize_str(text)] # pieces come as one character per byte

@pytest.mark.parametrize("name, digits", [(n, d) for n, d in ALL if n not in ("cl100k_base", "r50k_base")])
def test_tokenizers_cuts_the_same(name, digits):
    rng, parts = np.random.default_rng(3), [p.decode() for p in ALPHABET if p.decode(errors="ignore").encode() == p]
    cutter = Pretokenizer(name, digits=digits)
    peer = peer_of(cutter)
    for _ in range(100):
        text = "".join(parts[i] for i in rng.integers(len(parts), size=20))
        assert np.diff(cutter.boundaries(text)).tolist() == peer(text), text


def test_published_files(data_dir):
    for name in ("gpt-2", "gpt-neox", "claude"):
        content = json.loads((data_dir/"tokenizers"/f"{name}.json").read_text(encoding="utf8"))
        assert pretokenizer_from_json(content["pre_tokenizer"]) == Pretokenizer("gpt2")


def test_json_round_trip():
    for name, digits in [*ALL, (r"\d|\D+", "l2r"), ((r"\p{Han}+", "cl100k"), None), (r"a\"b", "single")]:
        cutter = Pretokenizer(name, digits=digits)
        back = pretokenizer_from_json(json.loads(json.dumps(cutter.to_json())))
        assert back == cutter and (back.pattern, back.digits, back.kind) == (cutter.pattern, cutter.digits, cutter.kind)


def test_reads_other_steps():
    parts = [dict(type="Digits", individual_digits=False), dict(type="Punctuation", behavior="Isolated"), dict(type="Split", pattern=dict(String="."), behavior="Isolated", invert=False),
             dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)]
    cutter = pretokenizer_from_json(dict(type="Sequence", pretokenizers=parts))
    text = "a 12,345.6 «b»… $x+y=z^2 _"
    peer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(False), tokenizers.pre_tokenizers.Punctuation("isolated"), tokenizers.pre_tokenizers.Split(".", "isolated")])
    assert [p.decode() for p in cutter.split(text)] == [p for p, _ in peer.pre_tokenize_str(text)]


@pytest.mark.parametrize("part", [dict(type="Metaspace"), dict(type="Whitespace"), dict(type="ByteLevel", add_prefix_space=True), dict(type="Punctuation", behavior="Removed"),
                                  dict(type="Split", pattern=dict(Regex=" "), behavior="Removed", invert=False), dict(type="Split", pattern=dict(Regex=" "), behavior="MergedWithNext", invert=False)])
def test_refuses_what_is_no_cut(part):
    with pytest.raises(ValueError, match="cannot read"): pretokenizer_from_json(part)
    with pytest.raises(ValueError, match="cannot read"): pretokenizer_from_json(dict(type="Sequence", pretokenizers=[dict(type="ByteLevel"), part]))


@given(st.integers(0, 10**40))
@settings(deadline=None)
def test_right_to_left_is_how_people_write(n):
    for name in (None, *RULES[:3]): assert Pretokenizer(name, digits="r2l").split(str(n)) == f"{n:,}".encode().split(b",")


@pytest.mark.parametrize("unit", [b"1", b"a", b"A", b" ", b"\n", b" \n", b"\n  ", b"'", "日A".encode(), "\u0301A".encode(), "\u0301".encode(), b"/", b"\xff", b"\xf0\x9f"])
def test_linear_in_long_runs(unit):
    data = np.frombuffer(unit * (1_000_000 // len(unit)), dtype=np.uint8)
    for name, digits in ALL:
        start = time.process_time()
        cuts = boundaries(data, Pretokenizer(name, digits=digits))
        assert cuts[-1] == len(data) and time.process_time() - start < 2 # quadratic would take minutes


def test_long_texts_go_through_several_buffers():
    text = "one, two  three\n" * 30_000
    assert Pretokenizer("cl100k").split(text) == published("cl100k", text)


def test_reads_only_the_text():
    # what stands behind the end must not matter: the same bytes, followed by something else
    for name, text in itertools.product(RULES, ("word", "a word", "x ", "'", "caf\xc3", "日"[:1], "ab" * 9, "12", "\n", "It's")):
        data = text.encode()
        for tail in (b"", b"s", b"\x80", b" ", b"aaaaaaaaaaaa", b"\n\n"):
            array = np.frombuffer(data + tail, dtype=np.uint8)[:len(data)]
            assert boundaries(array, name).tolist() == boundaries(data, name).tolist()


def test_shapes_and_errors():
    assert boundaries(b"", "gpt2").tolist() == [0] and boundaries("", r"\w").tolist() == [0]
    assert boundaries(np.frombuffer(b"a b c ", np.uint8)[::2], "gpt2").tolist() == [0, 3]
    assert Pretokenizer(r"\w+", digits="r2l").split("a1234é!") == [b"a", b"1", b"234", "é".encode(), b"!"]
    with pytest.raises(ValueError, match="uint8"): boundaries(np.zeros(3), "gpt2")
    with pytest.raises(ValueError, match="lone surrogate"): boundaries("a\ud800", "gpt2")
    with pytest.raises(ValueError, match="choose single"): Pretokenizer(digits="four")
    with pytest.raises(ValueError, match="no regular expression"): Pretokenizer(("gpt2", "["))


def test_buffer_that_is_too_small_goes_on():
    data, cutter, out = np.frombuffer(b"one two three four", np.uint8), Pretokenizer("gpt2"), np.empty(2, dtype=np.int64)
    assert cut_into(data, 0, cutter.kind, class_table(), out) == (2, 7) and out.tolist() == [3, 7]
    assert cut_into(data, 7, cutter.kind, class_table(), out) == (2, 18) and out.tolist() == [13, 18]
