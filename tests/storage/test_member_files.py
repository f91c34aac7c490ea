"""Logs of members: any text that an error has."""

from pathlib import Path

from pbtrl.storage.member_files import LOG, MemberFiles


def test_log_takes_every_character(tmp_path: Path) -> None:
    MemberFiles(tmp_path, ["m00"]).write_log("m00", "\udcff Zürich → failed\n")
    assert (tmp_path / "m00" / LOG).read_text(encoding="utf-8") == "\\udcff Zürich → failed\n"
