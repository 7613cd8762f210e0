"""The command: one sentence for what cannot be and exit code 2; a real process that answers until it is told to end."""

import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

import registry_folders
from rlhflab.cli import main
from served_adapters import BASE, client, said, trained


def failure(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("Loading")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("rlhflab: ")
    return lines[0]


def test_without_the_extra_one_sentence_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("rlhflab.commands.serve.find_spec", lambda name: None if name == "uvicorn" else name)
    assert "serve needs uvicorn, which is not installed; run: pip install 'mini-rlhf-lab[app]'" in failure(
        capsys, "serve")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, so keys are needed"),
    (["--token", "short"], "--token: a key is at least 16 random ASCII characters, found 5"),
    (["--api-keys", "none.txt"], "--api-keys: none.txt: cannot be read"),
    (["--adapter", "x"], "--adapter: must be NAME=FOLDER, found 'x'"),
    (["--adapter", "x=a", "--adapter", "x=b"], "--adapter: x is given twice"),
    (["--adapter", "x=nowhere"], "nowhere: no such folder"),
    (["--adapter", f"{BASE}=nowhere"], f"--adapter {BASE}: is the name of the base"),
    (["--registry", "nowhere"], "--registry nowhere: is not a registry; rlhflab registry init makes one"),
    (["--runs", "nowhere"], "--runs nowhere: no such folder"), (["--model", "no-such"], "no-such: no such model"),
    (["--log-requests", "nowhere/log"], "--log-requests: nowhere/log: cannot be written")])
def test_what_cannot_be_is_one_sentence(capsys, monkeypatch, tmp_path, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    arguments = arguments if "--model" in arguments else ["--model", BASE, *arguments]
    assert sentence in failure(capsys, "serve", "--port", "0", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_and_an_adapter_of_another_base_change_nothing(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: is in use" in failure(
            capsys, "serve", "--port", port, "--log-requests", tmp_path / "l")
    folder = trained(tmp_path, ("sft",))["sft"]
    words = failure(capsys, "serve", "--model", "tiny-qwen", "--port", 0, "--adapter", f"x={folder}")
    assert re.search("--adapter x: .*sft belongs to base weights [0-9a-f]{64}, and tiny-qwen has [0-9a-f]{64}", words)
    registry_folders.adapter_folder(tmp_path / "odd")
    assert "odd/adapter_config.json: is not a LoRA configuration" in failure(
        capsys, "serve", "--model", BASE, "--port", 0, "--adapter", f"x={tmp_path / 'odd'}")
    assert not (tmp_path / "l").exists()


def test_a_process_answers_until_it_is_told_to_end(tmp_path):
    folder = trained(tmp_path, ("sft",))["sft"]
    server = subprocess.Popen([sys.executable, "-m", "rlhflab", "serve", "--model", BASE, "--port", "0", "--adapter",
                               f"mine={folder}", "--log-requests", str(tmp_path / "log.jsonl")],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        url = re.match(r"(http://127\.0\.0\.1:\d+/v1) answers as tiny-llama, mine\. Only this machine can ask; "
                       r"requests go to .*log\.jsonl\.", line)[1]
        made = client(url).chat.completions.create(model="mine", messages=[{"role": "user", "content": "q"}],
                                                   max_tokens=4, seed=1)
        assert isinstance(said(made), str)
    finally:
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert server.returncode == 0 and "Next: rlhflab drift BASELINE" in out and "Traceback" not in err
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_reader_who_has_entered_the_pages_may_ask_the_api_and_nobody_else_without_a_key(tmp_path):
    token = "a-token-of-some-length"
    server = subprocess.Popen([sys.executable, "-m", "rlhflab", "serve", "--model", BASE, "--port", "0", "--token",
                               token], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.match(r"(\S+)/v1 answers as tiny-llama\. A key is needed", server.stdout.readline())[1]
        link = re.match(r"Pages, with a chat: (\S+)/enter#(\S+)", server.stdout.readline())
        assert link[1] == url
        with httpx.Client(base_url=url, headers={"Origin": url}) as reader:
            assert reader.get("/").status_code == reader.get("/v1/models").status_code == 401
            reader.post("/enter", data={"key": link[2]})
            assert "Two models, one conversation" in reader.get("/").text
            body = {"model": BASE, "messages": [{"role": "user", "content": "q"}], "max_tokens": 2}
            assert reader.post("/v1/chat/completions", json=body).status_code == 200
            other = {"Origin": "http://evil.example"}
            assert reader.post("/v1/chat/completions", json=body, headers=other).status_code == 403
        assert len(client(f"{url}/v1", token).models.list().data) == 1
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 0
