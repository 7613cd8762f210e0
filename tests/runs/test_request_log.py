"""Only whole lines, which `rlhflab drift` reads; a full disk stops nothing."""

import json
import os
import stat

import pytest

from rlhflab.errors import ConfigError
from rlhflab.runs.drift_sources import Source, read_replies
from rlhflab.runs.request_log import RequestLog


def test_drift_reads_what_was_logged(tmp_path):
    path = tmp_path / "requests.jsonl"
    for answer in ("yes\nor no", ""):
        log = RequestLog(path)
        log.add([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], answer, {"model": "m"})
        log.add("plain", answer, {"model": "m"})
        log.close()
    replies, prompts = read_replies(Source(name=str(path), kind="file"))
    assert [reply.text for reply in replies] == ["yes\nor no", "yes\nor no", "", ""], "an existing file is gone on with"
    assert [len(prompt.messages) for prompt in prompts] == [2, 1]
    assert {json.loads(line)["model"] for line in path.read_text().splitlines()} == {"m"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "what people ask is not for everybody to read"


def test_a_file_that_cannot_be_written_is_named_at_the_start_and_counted_later(tmp_path):
    with pytest.raises(ConfigError, match=r"--log-requests: .*nowhere/log.jsonl: cannot be written: No such file"):
        RequestLog(tmp_path / "nowhere" / "log.jsonl")
    log = RequestLog(tmp_path / "log.jsonl")
    os.close(log._file)
    log.add("q", "a", {})
    assert log.failed == 1
