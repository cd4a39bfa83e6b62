"Shared by all tests: the `--slow` switch, one thread, and a reason for every skip."
import os
import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests marked slow too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")


def pytest_collection_modifyitems(config, items):
    import torch
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"): item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "cuda" in item.keywords and not torch.cuda.is_available(): item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_make_parametrize_id(config, val, argname):
    "Objects are named by their kind: their address would differ between the processes that share the tests."
    return f"{argname}-{type(val).__name__}" if " at 0x" in repr(val) else None


@pytest.fixture(scope="session")
def data_dir():
    "The folder of the data mirror; tests that need it are skipped where there is none."
    from pathlib import Path
    folder = os.environ.get("TOKENLAB_DATA")
    if not folder or not Path(folder).is_dir(): pytest.skip("TOKENLAB_DATA names no folder: data mirror not at hand")
    return Path(folder)


@pytest.fixture(scope="session")
def open_as_saved():
    "Checks that a byte-level tokenizer comes back from its file, and that `tokenizers` and `transformers` read the file as we do."
    import tokenizers
    from tokenlab.tokenizers.core import Tokenizer
    def check(tok, folder, texts, plain):
        again = Tokenizer.load(tok.save(folder))
        theirs = tokenizers.Tokenizer.from_file(str(folder/"tokenizer.json"))
        assert again.to_json() == tok.to_json() and again.pattern == tok.pattern and again.tokens == tok.tokens
        for text in texts:
            ids = theirs.encode(text).ids
            assert again.encode(text, special="allow") == ids and theirs.decode(ids, skip_special_tokens=False) == text
        transformers = pytest.importorskip("transformers")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder/"tokenizer.json"))
        assert fast.encode(plain) == again.encode(plain)
    return check
