"Digit schemes: pattern equals slicing, f'{n:,}' and the published patterns; the tokenizers library cuts the same."
import random
import pytest, regex, tokenizers
from hypothesis import given, settings, strategies as st
from tokenizers import pre_tokenizers
from tokenlab.tokenizers.bpe import PATTERNS, compile_pattern, split, train_bpe
from tokenlab.tokenizers.core import Tokenizer
from tokenlab.tokenizers.numbers import KINDS, DigitScheme, digit_share, format_number, groups, number_cost, parse_number, with_digits

SCHEMES = [DigitScheme("single"), DigitScheme("whole"), *(DigitScheme(kind, k) for kind in ("l2r", "r2l") for k in (1, 2, 3, 4))]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_pattern_is_slicing(scheme):
    rng = random.Random(0)
    for n in range(40):
        digits = "".join(rng.choices("0123456789", k=n))
        assert regex.findall(scheme.pattern, f"a{digits}b") == scheme.split(digits) and "".join(scheme.split(digits)) == digits


@given(st.integers(0, 10**40))
def test_commas(n):
    assert groups(str(n), right=True) == f"{n:,}".split(",") == DigitScheme().split(str(n))
    assert format_number(n) == f"{n:,}" and format_number(n, "_") == f"{n:_}" and format_number(-n) == f"{-n:,}"


@given(st.integers(), st.sampled_from([",", " ", "$", "foo", "."]), st.sampled_from([s for s in SCHEMES]))
def test_formatted_comes_back(n, sep, scheme): assert parse_number(format_number(n, sep, scheme=scheme), sep) == n


@pytest.mark.parametrize("name", ["cl100k", "o200k", "llama3"])
def test_left_groups_are_the_published_ones(name):
    rng = random.Random(1)
    for _ in range(300):
        digits = str(rng.randrange(10**rng.randrange(1, 30)))
        assert split(digits, compile_pattern(name)) == DigitScheme("l2r").split(digits)


@given(st.text(st.sampled_from("0129½٣ \n\tab.,-'$é"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_only_digits_change(text):
    for name in PATTERNS:
        plain = split(text, compile_pattern(name))
        for scheme in SCHEMES:
            mine = split(text, compile_pattern(with_digits(name, scheme)))
            assert "".join(mine) == text
            letters = lambda parts: [p for p in parts if not regex.search(r"\p{N}", p)]
            if name != "gpt2": assert letters(mine) == letters(plain)
    assert split(text, compile_pattern(with_digits("o200k", DigitScheme("l2r")))) == split(text, compile_pattern("o200k"))


@given(st.text(st.sampled_from("0123456789 ab.,"), max_size=60))
@settings(max_examples=150, deadline=None)
def test_the_library_cuts_the_same(text):
    for scheme in SCHEMES[2:]:
        pattern = with_digits("cl100k", scheme)
        peer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        assert [p for p, _ in peer.pre_tokenize_str(text)] == split(text, compile_pattern(pattern))


def test_tokenizer_keeps_its_scheme(tmp_path):
    tok = train_bpe([" ".join(map(str, range(1000, 3000)))], 400, pattern=with_digits("cl100k", DigitScheme("r2l")))
    again = Tokenizer.load(tok.save(tmp_path/"t.json"))
    assert again.pattern == tok.pattern and again.encode("x 1234567") == tok.encode("x 1234567") == tok.to_hf().encode("x 1234567").ids


def test_cost_and_share():
    tok = train_bpe(["1 22 333 4444"]*3, 256, pattern=with_digits("cl100k", DigitScheme("single")))
    assert number_cost(tok, ["a1 22"]) == dict(digits_per_token=1., tokens=5, numerals=10)
    assert digit_share(["ab12", "3"]) == {"characters": 3/5, "runs": 2, "length 1": .5, "length 2": .5, "length 3": 0., "length 4": 0., "length 5+": 0.}


def test_errors():
    with pytest.raises(ValueError, match="choose from"): DigitScheme("left")
    with pytest.raises(ValueError, match="at least 1"): DigitScheme("l2r", 0)
    with pytest.raises(ValueError, match="at least 1"): groups("12", 0)
    with pytest.raises(ValueError, match="not one"): with_digits(r"\w+|\W+", DigitScheme())
    with pytest.raises(ValueError, match="is no number"): parse_number("a,b")
    with pytest.raises(ValueError, match="no text"): digit_share([""])
