"""What the pages of the desk show of files that others wrote, and what they refuse; the chat is tested in a browser."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from desk_folders import EVIL, add, gate_row, lineage_registry, made, run_folders, whole_desk, write_gate
from rlhflab.app.desk import desk_app, when
from rlhflab.app.run_folders import run_folder, run_names, run_page, run_rows
from rlhflab.app.server import Access
from rlhflab.registry.records import BEFORE_ALL, Entry, LedgerHead, chained
from rlhflab.registry.store import Registry

BASE = "http://127.0.0.1"
SECRET = "a-secret-of-32-random-characters"
RUN = "/runs/ppo-20261124-101500"


def access_of(token=None):
    return Access.of(("anna",), token=token, host="127.0.0.1")


def client(app):
    return TestClient(app, base_url=BASE, headers={"Origin": BASE}, follow_redirects=False)


def desk(registry=None, runs=None, token=None):
    return client(desk_app(access_of(token), registry=registry, runs=runs))


def key_on(page):
    return page.text.partition('name="form_key" value="')[2].partition('"')[0]


@pytest.fixture
def registry(tmp_path):
    return lineage_registry(tmp_path)


@pytest.fixture
def runs(tmp_path):
    return run_folders(tmp_path / "runs")


def test_a_page_whose_folder_was_not_given_says_so():
    pages = desk()
    for path, words in (("/runs", "--runs FOLDER"), ("/gates", "--runs FOLDER"), ("/registry", "--registry FOLDER")):
        page = pages.get(path)
        assert page.status_code == 200 and words in page.text
    assert pages.get("/runs/a").status_code == pages.get("/registry/a").status_code == 404


@pytest.mark.parametrize("path", ["/", "/runs", RUN, f"{RUN}/report.html", "/registry", "/gates", "/plotly.js"])
def test_nobody_sees_a_page_without_the_key_of_a_server_that_has_a_token(runs, registry, path):
    pages = desk(registry.folder, runs, token=SECRET)
    assert pages.get(path).status_code == 401
    pages.post("/enter", data={"key": f"anna.{access_of(SECRET).key('anna')}"})
    assert pages.get(path).status_code == 200


def test_the_desk_can_be_mounted_behind_an_api_and_keeps_its_guard(tmp_path):
    pages = client(whole_desk(tmp_path, access_of()).app)
    assert pages.get("/v1/models").json()["data"][0]["id"] == "smollm2-135m"
    page = pages.get("/registry")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert pages.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert pages.post("/registry/verify", data={"form_key": key_on(page)}, headers={"Origin": "http://evil.example"}
                      ).status_code == 403


# -- the API beside the pages

@pytest.mark.parametrize(("headers", "status"), [
    ({"Authorization": f"Bearer {SECRET}"}, 200), ({"Authorization": "Bearer nothing"}, 401), ({}, 401),
    ({"Authorization": "Bearer \u00fc".encode()}, 401)])
def test_a_program_shows_the_token_to_the_api(tmp_path, headers, status):
    api = TestClient(whole_desk(tmp_path, access_of(SECRET)).app, base_url=BASE)
    assert api.post("/v1/chat/completions", json={"model": "sft", "messages": [{"content": "a"}]},
                    headers=headers).status_code == status


def test_a_page_whose_reader_has_entered_may_call_the_api_and_no_other_page_may(tmp_path):
    pages = client(whole_desk(tmp_path, access_of(SECRET)).app)
    body = {"model": "sft", "messages": [{"content": "a"}]}
    assert pages.post("/v1/chat/completions", json=body).status_code == 401
    pages.post("/enter", data={"key": f"anna.{access_of(SECRET).key('anna')}"})
    assert pages.post("/v1/chat/completions", json=body).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert pages.post("/v1/chat/completions", json=body, headers=headers).status_code == 403
    assert pages.get("/v1/models", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Origin": BASE}, 200), ({"Origin": "http://evil.example"}, 403), ({"Host": "evil.example"}, 421),
    ({"Sec-Fetch-Site": "cross-site"}, 403)])
def test_without_a_token_only_pages_elsewhere_are_kept_from_the_api(tmp_path, headers, status):
    api = TestClient(whole_desk(tmp_path, access_of()).app, base_url=BASE)
    assert api.get("/v1/models", headers=headers).status_code == status


# -- answers

def test_an_answer_becomes_markdown_without_html_of_its_own():
    pages = desk()
    key = pages.get("/").text.partition('data-key="')[2].partition('"')[0]
    page = pages.post("/markdown", data={"form_key": key, "text": f"**b**\n\n{EVIL}"})
    assert "<strong>b</strong>" in page.text
    assert not any(each in page.text for each in ("<script", "<img", "<svg", "<style", 'href="javascript'))
    assert pages.post("/markdown", data={"form_key": "0", "text": "a"}).status_code == 403


# -- runs

def test_the_list_says_what_each_run_is_newest_first(runs):
    page = desk(runs=runs).get("/runs").text
    names = ["gate-20261125-110000", "gate-20261125-100000", "ppo-20261124-101500", "broken"]
    places = [page.index(f'href="/runs/{name}"') for name in names]
    assert places == sorted(places)
    assert "step 32: gold 0.512, proxy 1.92, kl 9.4" in page and "2026-11-24 10:15:00" in page and "helpdesk" in page


def test_the_runs_inside_a_run_stand_behind_it(tmp_path):
    for name, began in (("old", "2026-01-01"), ("new", "2026-02-01"), ("old/sft", None), ("new/sft", None),
                        ("group/x", None)):
        made(tmp_path / name).joinpath("record.json").write_text(json.dumps({"kind": "sft", "started": began}))
    assert [row.name for row in run_rows(tmp_path)] == ["new", "new/sft", "old", "old/sft", "group/x"]


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": n}) + "\n" for n in range(1, 2502)))
    (figure,) = run_page(tmp_path.parent, tmp_path).figures
    drawn = json.loads(figure.json)["data"][0]["x"]
    assert (drawn[0], drawn[1], drawn[-1], len(drawn)) == (1, 4, 2501, 835)


def test_a_value_with_its_interval_is_one_line(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"a": {"gold": {"mean": 0.5, "low": 0.25, "high": 1, "n": 8}}}))
    assert run_page(tmp_path.parent, tmp_path).summary == {"a.gold": "0.5 [0.25, 1] n=8"}


def test_a_run_has_its_settings_its_record_and_a_figure_for_each_metric(runs):
    page = desk(runs=runs).get(RUN)
    assert page.text.count('class="plot"') == 12 and "data: helpdesk" in page.text and "812.5" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"], "only styles are let in"
    assert "Plotly" in desk(runs=runs).get("/plotly.js").text


def test_broken_files_are_a_sentence_each_beside_what_can_be_read(runs):
    page = desk(runs=runs).get("/runs/broken")
    assert page.status_code == 200 and "kind: [" in page.text
    assert "record.json: is not JSON" in page.text and "metrics.jsonl:2: is not JSON" in page.text


@pytest.mark.parametrize("text", ["[1]", "null", '"a"', "\ud800", "{" * 5000, "[" * 200_000,
                                  '{"a":' * 900 + "1" + "}" * 900, '{"base": 3, "kind": [{}]}',
                                  '{"started": {"a": 1}, "status": [1]}'])
@pytest.mark.parametrize("name", ["record.json", "summary.json", "config.yaml", "metrics.jsonl", "gate.json"])
def test_no_content_of_a_file_breaks_a_page(tmp_path, name, text):
    made(tmp_path / "runs/one").joinpath(name).write_bytes(text.encode("utf-8", "surrogatepass") + b"\n")
    pages = desk(runs=tmp_path / "runs")
    for path in ("/runs", "/runs/one", "/gates", "/gates/one"):
        assert pages.get(path).status_code == 200, path


ODD = (None, 10**400, -0.5, "", [], [{"a": 1}], {"a": [1]}, True)
"""What may stand where something else is expected."""


def odd_values(value, odds=ODD):
    """Copies of a nested value, in each of which one part is odd."""
    yield from odds
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(parts):
        for odd in odd_values(inner, odds):
            copy = value.copy()
            copy[key] = odd
            yield copy


def test_no_odd_value_in_a_gate_breaks_a_page(tmp_path):
    pages = desk(runs=tmp_path / "runs")
    gate = write_gate(tmp_path / "runs/one", rows=[gate_row()]) / "gate.json"
    for odd in odd_values(json.loads(gate.read_text()), (None, 10**400, [{"a": 1}])):
        gate.write_text(json.dumps(odd))
        assert pages.get("/gates/one").status_code == pages.get("/gates").status_code == 200, odd


def test_no_odd_value_in_a_record_or_a_metric_breaks_a_page(tmp_path):
    pages = desk(runs=tmp_path / "runs")
    folder = made(tmp_path / "runs/one")
    for name, whole in (("record.json", {"kind": "sft", "started": "a", "status": "b", "base": {"name": "c"}}),
                        ("metrics.jsonl", {"step": 1, "loss": 2})):
        for odd in odd_values(whole):
            (folder / name).write_text(json.dumps(odd) + "\n")
            assert pages.get("/runs/one").status_code == pages.get("/runs").status_code == 200, odd


def test_a_file_that_expands_itself_is_not_written_out(tmp_path):
    lines = ["a0: &a0 x"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)] + ["data: *a8"]
    made(tmp_path / "runs/one").joinpath("config.yaml").write_text("\n".join(lines))
    assert len(desk(runs=tmp_path / "runs").get("/runs").text) < 10_000


@pytest.fixture
def beside_a_secret(tmp_path):
    """A folder of runs with one run, beside a run folder that is none of them and an alias of it among them."""
    run = made(tmp_path / "runs/one")
    for folder in (run, made(tmp_path / "secret"), made(run / "roles")):
        (folder / "config.yaml").write_text("kind: sft\n")
        (folder / "report.html").write_text("a secret")
        (folder / "gate.json").write_text("{}")
    (tmp_path / "runs/alias").symlink_to(tmp_path / "secret")
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "one/..", "one/../../secret", "./one", "one/", "/one",
                                  "alias", "one/roles", "one/.", "one\0", "..\\secret", "one/a/b/c/d", "*",
                                  "../runs/one"])
def test_no_name_leads_out_of_the_runs(beside_a_secret, name):
    assert run_folder(beside_a_secret, name) is None and run_folder(beside_a_secret, str(beside_a_secret)) is None
    assert run_folder(beside_a_secret, "one") == beside_a_secret / "one"
    assert run_names(beside_a_secret) == ["one"]


@pytest.mark.parametrize("name", ["..%2fsecret", "%2e%2e%2fsecret", "one%2f..%2f..%2fsecret", "%2fetc", "one%00",
                                  "..%5csecret", "alias", "one/roles", "%2e%2e/secret", "one%2f%2e%2e"])
def test_no_address_leads_out_of_the_runs(beside_a_secret, name):
    pages = desk(runs=beside_a_secret)
    for path in (f"/runs/{name}", f"/runs/{name}/report.html", f"/gates/{name}"):
        assert pages.get(path).status_code == 404, path
    assert pages.get("/runs/one/report.html").text == "a secret", "the same is served where it belongs"


def test_a_report_that_is_a_link_to_elsewhere_is_not_served(tmp_path):
    run = made(tmp_path / "runs/one")
    (run / "config.yaml").write_text("kind: sft\n")
    (tmp_path / "secret.html").write_text("a secret")
    (run / "report.html").symlink_to(tmp_path / "secret.html")
    page = desk(runs=tmp_path / "runs").get("/runs/one/report.html")
    assert page.status_code == 404 and "has no report" in page.text


def test_a_report_is_served_in_a_sandbox(runs):
    page = desk(runs=runs).get(f"{RUN}/report.html")
    policy = page.headers.get_list("content-security-policy")
    assert len(policy) == 1 and "sandbox allow-scripts;" in policy[0] + ";" and "allow-same-origin" not in policy[0]
    assert "default-src 'none'" in policy[0] and "connect-src" not in policy[0] and page.text.startswith("<!doctype")


# -- gates

def test_each_row_of_a_gate_has_its_verdict_reason_and_numbers(runs):
    page = desk(runs=runs).get("/gates/gate-20261125-100000").text
    assert "changed by +0.020" in page and "a loss of 0.1 is ruled out." in page
    assert "+0.020<small>[\u22120.030,\u00a00.070], n\u00a0=\u00a0120</small>" in page and "2 not scored" in page
    assert page.count("inconclusive") == 1 and "only warns" in page and "may block" in page
    listed = desk(runs=runs).get("/gates").text
    assert listed.index("gate-20261125-110000") < listed.index("gate-20261125-100000")
    assert "1 pass, 1 inconclusive" in listed


def test_a_gate_without_rows_says_what_is_missing(tmp_path):
    write_gate(tmp_path / "runs/one", rows="none")
    assert "rows: must be a list" in desk(runs=tmp_path / "runs").get("/gates/one").text


# -- the registry

def test_the_registry_shows_adapters_where_they_come_from_and_where_they_are_active(registry, tmp_path):
    dpo = registry.state().find("dpo").digest
    write_gate(tmp_path / "runs/judged", candidate_digest=dpo, verdict="fail")
    page = desk(registry.folder, tmp_path / "runs").get("/registry").text
    row = page.partition('<th scope="row"><a href="/registry/' + dpo)[2].partition("</tr>")[0]
    assert ">sft</a>" in row and ">fail</b>" in row and 'href="/gates/judged"' in row and ">prod</td>" in row
    assert "chain of the ledger is unbroken: 8 entries, unsigned." in page and "a rollback goes to" in page
    assert "promoted dpo to prod, after ppo" in page and "because: a first one" in page


def test_the_graph_has_a_box_for_each_adapter_and_a_line_from_each_parent(registry):
    page = desk(registry.folder).get("/registry").text
    graph = page.partition("<svg")[2].partition("</svg>")[0]
    assert graph.count("<rect") == 6 and graph.count("<path") == 6 and graph.count('class="made guessed"') == 1
    assert graph.count("<a href") == 5 and graph.count("box adapter active") == 1


def test_an_adapter_has_its_model_card_and_what_became_of_it(registry):
    pages = desk(registry.folder)
    page = pages.get(f"/registry/{registry.state().find('ppo').digest}").text
    assert "LoRA, rank 4, alpha 8" in page and "in prod, gave way to" in page
    assert pages.get("/registry/" + "0" * 64).status_code == 404
    assert pages.get("/registry/..%2f..").status_code == 404


def test_a_broken_chain_is_named_and_what_lies_before_it_is_shown(registry):
    ledger = registry.folder / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    lines[6] = lines[6].replace("anna", "eve")
    ledger.write_text("\n".join(lines) + "\n")
    page = desk(registry.folder).get("/registry")
    assert page.status_code == 200 and "The hash chain of the ledger is broken" in page.text
    assert "ledger.jsonl:7: expected" in page.text and "added merged" in page.text and "promoted ppo" not in page.text


def test_every_file_is_checked_on_demand_only(registry):
    pages = desk(registry.folder)
    sft = registry.state().find("sft")
    (registry.path_of(sft) / "adapter_model.safetensors").write_bytes(b"other")
    page = pages.get("/registry")
    assert "is unbroken" in page.text and "adapter_model.safetensors" not in page.text
    checked = pages.post("/registry/verify", data={"form_key": key_on(page)}).text
    assert "1 of " in checked and "are not as the ledger says" in checked
    assert f"adapters/{sft.digest}/adapter_model.safetensors: expected" in checked
    assert pages.post("/registry/verify", data={"form_key": "0"}).status_code == 403


def test_a_sound_registry_passes_the_check(registry):
    pages = desk(registry.folder)
    checked = pages.post("/registry/verify", data={"form_key": key_on(pages.get("/registry"))}).text
    assert "things that were checked are as the ledger says" in checked


@pytest.mark.parametrize("ledger", [None, "", "{}\n", "not json\n", "\udcff\n"])
def test_no_registry_and_a_broken_one_are_a_sentence(tmp_path, ledger):
    folder = made(tmp_path / "registry")
    if ledger is not None:
        (folder / "ledger.jsonl").write_bytes(ledger.encode("utf-8", "surrogateescape"))
    pages = desk(folder)
    page = pages.get("/registry")
    assert page.status_code == 200 and ("role=\"alert\"" in page.text or "The hash chain of the ledger is" in page.text)
    assert pages.get("/registry/a").status_code in (200, 404)


def test_an_entry_that_makes_no_sense_but_is_chained_is_a_sentence(tmp_path):
    said = {"number": 1, "at": "now", "kind": "add", "by": None, "body": {"made": {}}, "clock_went_back": False}
    folder = made(tmp_path / "registry")
    (folder / "ledger.jsonl").write_text(Entry(**said, hash=chained(BEFORE_ALL, said), signature=None).line + "\n")
    page = desk(folder).get("/registry")
    assert page.status_code == 200 and "cannot be read: KeyError" in page.text


def test_no_odd_value_in_a_chained_entry_breaks_a_page(registry):
    """Of an unsigned registry anybody can write a chain that holds."""
    pages = desk(registry.folder)
    digest = registry.state().find("dpo").digest
    entries = [entry.said for entry in registry.entries()]
    for place in (2, 7):  # dpo was added, and promoted with a gate
        for odd in (each for each in odd_values(entries[place], (None, 10**400)) if each and each != 10**400):
            write_chain(registry.folder, [*entries[:place], odd, *entries[place + 1:]])
            assert pages.get("/registry").status_code == 200, odd
            assert pages.get(f"/registry/{digest}").status_code in (200, 404), odd


def write_chain(folder, said):
    """A ledger of these entries, hashed as they must be, and the head that fits it."""
    last, lines = BEFORE_ALL, []
    for each in said:
        last = chained(last, each)
        lines.append(Entry(**each, hash=last, signature=None).line)
    (folder / "ledger.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "HEAD").write_text(LedgerHead(entries=len(said), hash=last, signature=None).text)


# -- text of others

def test_no_text_of_a_file_becomes_markup(tmp_path):
    run = made(tmp_path / "runs/<b>run")
    (run / "record.json").write_text(json.dumps(
        {"kind": EVIL, "status": EVIL, "started": EVIL, "base": {"name": EVIL}}))
    (run / "config.yaml").write_text(json.dumps({"data": EVIL, "x": EVIL}))
    (run / "summary.json").write_text(json.dumps({EVIL: EVIL}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, EVIL: 1}) + "\n")
    write_gate(tmp_path / "runs/evil", verdict=EVIL, candidate=EVIL, policy=EVIL, at=EVIL, rows=[
        gate_row(suite=EVIL, metric=EVIL, test=EVIL, verdict=EVIL, reason=EVIL)])
    registry = Registry.init(tmp_path / "registry", signed=False, by=EVIL)
    digest = add(registry, tmp_path / "trained", "one", value=1, note=EVIL)
    registry.promote("one", "prod", by=EVIL, gate=None, override=EVIL)
    pages = desk(registry.folder, tmp_path / "runs")
    for path in ("/runs", "/runs/%3Cb%3Erun", "/gates", "/gates/evil", "/registry", f"/registry/{digest}"):
        page = pages.get(path)
        assert page.status_code == 200 and "evil.example" in page.text, path
        inside = page.text.partition("<main")[2]
        assert not any(each in inside for each in ("<script>", "<img", "<svg onload", "<style", "<b>run")), path


def test_the_pages_need_no_torch():
    code = "import sys, rlhflab.app.desk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


def test_what_is_added_while_the_server_runs_is_there_at_the_next_look(tmp_path, runs):
    pages = desk(runs=runs)
    write_gate(runs / "later")
    assert "later" in pages.get("/gates").text
    shutil.rmtree(runs / "later")
    assert "later" not in pages.get("/gates").text and pages.get("/gates/later").status_code == 404


def test_a_time_is_shown_without_its_letters_and_any_other_text_as_it_is():
    assert when("2026-11-26T20:34:05.123456+00:00") == "2026-11-26 20:34:05"
    assert when("yesterday") == "yesterday"
