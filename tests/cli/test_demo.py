import json
import subprocess
import sys
from pathlib import Path

from tests.messages import write_all


def run_demo(directory: Path, messages: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmtp_atrest", "demo", "--directory", str(directory)]
    return subprocess.run(
        [*command, "--messages", str(messages)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_demo_tells_its_story_and_counts(tmp_path: Path) -> None:
    messages = list(write_all(tmp_path / "messages"))
    result = run_demo(tmp_path / "demo", tmp_path / "messages")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["delivered"] == 2 * len(messages)
    assert report["ciphertext_files"] == report["equal_reads"] == len(messages)
    assert report["refused_reads"] == 4
    assert report["faults"] == []
    assert "CRYPTED" in result.stdout


def test_the_demo_removes_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    messages = tmp_path / "messages"
    messages.mkdir()
    assert run_demo(tmp_path / "demo", messages).returncode == 2
    (messages / "a.eml").write_bytes(b"Subject: a\r\n\r\nb\r\n")
    (tmp_path / "demo").mkdir()
    precious = tmp_path / "demo" / "thesis.tex"
    precious.touch()
    refused = run_demo(tmp_path / "demo", messages)
    assert refused.returncode == 2
    assert "thesis.tex" in refused.stderr
    assert precious.exists()
