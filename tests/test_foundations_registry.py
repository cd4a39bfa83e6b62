"Writing files: whole or not at all."
import json, os
from pathlib import Path
import pytest
from tokenlab.registry import write_json, write_whole


def test_folders_are_made_and_line_ends_and_bytes_kept(tmp_path):
    path = write_whole(str(tmp_path/"new"/"folder"/"a.txt"), "é\r\nb\n")
    assert path.read_bytes() == "é\r\nb\n".encode("utf8")
    assert write_whole(path, b"\xff\x00").read_bytes() == b"\xff\x00"


@pytest.mark.parametrize("broken", ["replace", "write_bytes"])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, broken):
    path = write_json(tmp_path/"a.json", {"old": 1})
    real = Path.write_bytes
    def fail(self, content):
        if broken == "write_bytes": real(self, content[:3])     # half of it is on the disk
        raise OSError("disk full")
    monkeypatch.setattr(Path, broken, fail)
    with pytest.raises(OSError, match="disk full"): write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_json_that_other_programs_read(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"): write_json(tmp_path/"a.json", {"x": float("inf")})
    assert write_json(tmp_path/"a.json", ["naïve"]).read_bytes() == '[\n "naïve"\n]\n'.encode("utf8")
