"""The judge against a local server that speaks its protocol, and blind ratings without a browser."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib import people as j
from lib import people as r

KEY = "sk-secret-0123456789"
PAIRS = [r.Pair(f"p{i}", f"prompt {i} 提示", f"bad text {i}", f"good text {i}") for i in range(6)]


def answer(text, usage=(100, 10)):
    usage = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return 200, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})


def verdict(winner):
    return answer(json.dumps({"winner": winner, "reason": "because"}))


def fair(question, _):
    return verdict("A" if question.index("good") < question.index("bad") else "B")


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that timed out has hung up: no traceback for that."""


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(reply) starts a judge whose answers are reply(question, number of the request)."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROFILE", "fast")
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    servers = []

    def start(reply, **options):
        seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append((self.path, self.headers["Authorization"], body))
                status, text, *headers = reply(body["messages"][-1]["content"], len(seen))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_GET(self):
                seen.append((self.path, self.headers["Authorization"], None))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = QuietServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/v1/"
        settings = {"timeout": 20.0, "attempts": 3, "wait": 0.01, **options}
        return j.Endpoint(url, "stub", KEY, **settings), seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_fair_judge(serve, tmp_path):
    endpoint, seen = serve(fair, price=(1.0, 10.0))
    table, summary = j.judge(PAIRS, endpoint)
    assert list(table["id"]) == [p.id for p in PAIRS]
    assert set(table["winner"]) == set(table["before_first"]) == set(table["after_first"]) == {"after"}
    assert table["agreed"].all() and summary["disagreement_rate"] == 0
    assert (summary["win_rate"], summary["n"], summary["requests"]) == (1.0, 6, 12)
    assert 0.5 < summary["low"] < 0.7 and summary["p_value"] == pytest.approx(2 / 2**6)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (1200, 120)
    assert summary["cost"] == pytest.approx(0.0024)
    assert {path for path, _, _ in seen} == {"/v1/chat/completions"}
    assert {auth for _, auth, _ in seen} == {f"Bearer {KEY}"}
    assert all(body["temperature"] == 0 and body["model"] == "stub" for _, _, body in seen)
    written = [p.read_text("utf-8") for p in tmp_path.rglob("*") if p.is_file()]
    assert written and not any(KEY in text for text in written)


def test_verdicts_are_mapped_back_from_either_side(serve):
    worse = [r.Pair("w", "p", "good", "bad"), r.Pair("b", "p", "bad", "good")]
    endpoint, _ = serve(fair)
    table, summary = j.judge(worse, endpoint)
    assert table["winner"].tolist() == table["before_first"].tolist() == ["before", "after"]
    assert table["after_first"].tolist() == ["before", "after"] and summary["win_rate"] == 0.5


def test_position_biased_judge_wins_nothing(serve):
    endpoint, _ = serve(lambda *_: verdict("A"))
    table, summary = j.judge(PAIRS, endpoint)
    assert set(table["winner"]) == {"tie"} and not table["agreed"].any()
    assert (summary["disagreement_rate"], summary["win_rate"], summary["p_value"]) == (1.0, 0.5, None)


def test_interrupted_judging_pays_once(serve, tmp_path):
    broken, seen = serve(lambda q, n: fair(q, n) if n <= 5 else (400, "{}"))
    with pytest.raises(j.JudgeUnavailable, match="400"):
        j.judge(PAIRS, broken, workers=1)
    cache = tmp_path / "data" / "runs" / "judge.jsonl"
    assert len(r.read_lines(cache)) == 5
    with open(cache, "a", encoding="utf-8") as file:
        file.write('{"key": "cut sho')  # the machine stopped here
    failing = len(seen)
    _, summary = j.judge(PAIRS[:2], broken)  # its four answers are cached: the server is not asked
    assert (summary["requests"], len(seen), summary["n"]) == (0, failing, 2)
    changed = [r.Pair("p0", "prompt 0 提示", "bad text 0", "another good text")]
    with pytest.raises(j.JudgeUnavailable):
        j.judge(changed, broken)
    row = {"key": "after the cut line"}
    r.append_line(cache, row)
    assert r.read_lines(cache)[-1] == row and len(r.read_lines(cache)) == 6


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tries_again(serve, status):
    endpoint, seen = serve(lambda q, n: (status, "later", ("Retry-After", "0")) if n <= 2 else fair(q, n))
    table, _ = j.judge(PAIRS[:1], endpoint, workers=1)
    assert table["winner"].item() == "after" and len(seen) == 4


def test_gives_up_with_a_sentence(serve):
    endpoint, seen = serve(lambda *_: (503, KEY))
    with pytest.raises(j.JudgeUnavailable, match="answered 503 3 times") as error:
        j.judge(PAIRS[:1], endpoint, workers=1)
    assert len(seen) == 3 and KEY not in str(error.value)


def test_timeout(serve):
    def slow(question, n):
        time.sleep(1.0 if n == 1 else 0)
        return fair(question, n)

    endpoint, seen = serve(slow, timeout=0.3, attempts=2)
    table, _ = j.judge(PAIRS[:1], endpoint, workers=1)
    assert table["winner"].item() == "after" and len(seen) == 3
    endpoint, _ = serve(lambda q, n: (time.sleep(1.0), fair(q, n))[1], timeout=0.2, attempts=2)
    with pytest.raises(j.JudgeUnavailable, match="gave no answer"):
        j.judge(PAIRS[:1], endpoint, workers=1)


@pytest.mark.parametrize("status, hint", [(401, "JUDGE_API_KEY"), (404, "JUDGE_MODEL")])
def test_refusal_hides_the_key(serve, status, hint):
    endpoint, seen = serve(lambda *_: (status, json.dumps({"error": f"wrong key {KEY}"})))
    with pytest.raises(j.JudgeUnavailable, match=f"{status}.*{hint}") as error:
        j.judge(PAIRS[:1], endpoint, workers=1)
    assert len(seen) == 1
    chain = [error.value, error.value.__cause__]
    assert KEY not in f"{chain} {endpoint!r} {endpoint}"
    assert error.value.__suppress_context__


def test_key_does_not_follow_a_redirect(serve):
    other, seen = serve(fair)
    elsewhere = other.base_url + "chat/completions"
    endpoint, _ = serve(lambda *_: (302, "", ("Location", elsewhere)))
    with pytest.raises(j.JudgeUnavailable, match="302"):
        j.judge(PAIRS[:1], endpoint, workers=1)
    assert not seen


def test_unparsable_replies_are_counted(serve):
    def mixed(question, n):
        return answer("I like both.") if "prompt 0" in question else fair(question, n)

    endpoint, _ = serve(mixed)
    table, summary = j.judge(PAIRS, endpoint)
    assert table["winner"].isna().tolist() == [True] + [False] * 5
    assert (summary["unparsable"], summary["n"], summary["win_rate"]) == (1, 5, 1.0)
    endpoint, _ = serve(lambda *_: (200, "<html>welcome</html>"))
    with pytest.raises(j.JudgeUnavailable, match="end in /v1"):
        j.judge(PAIRS, endpoint)


@pytest.mark.parametrize(
    "reply, expected",
    [
        ('{"winner": "A", "reason": "x"}', "A"),
        ('```json\n{"winner": "b", "reason": "has } and { in it"}\n```', "B"),
        ('Sure!\n{"winner": "Tie"}\nBye.', "tie"),
        ('<think>{"winner": "A"}</think>{"winner": "B"}', "B"),
        ('{"winner": "A"} or rather {"winner": "B"}', None),
        ('{"winner": "C"}', None),
        ('{"winner": null}', None),
        ("winner: A", None),
        ("", None),
        (None, None),
        ('{"winner": "A', None),
    ],
)
def test_parse(reply, expected):
    assert j.parse(reply) == expected


def test_without_a_judge_a_sentence_says_so(monkeypatch):
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL", "JUDGE_API_KEY", "JUDGE_PRICE_PER_MILLION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(j.JudgeUnavailable, match="JUDGE_BASE_URL, JUDGE_MODEL, JUDGE_API_KEY"):
        j.judge(PAIRS)
    monkeypatch.setenv("JUDGE_BASE_URL", "https://host/v1")
    monkeypatch.setenv("JUDGE_MODEL", "m")
    for bad in (f"{KEY}\n{KEY}", f"{KEY}钥"):
        monkeypatch.setenv("JUDGE_API_KEY", bad)
        with pytest.raises(j.JudgeUnavailable, match="JUDGE_API_KEY") as error:
            j.Endpoint.from_environment()
        assert KEY not in str(error.value)
    monkeypatch.setenv("JUDGE_API_KEY", KEY + "\n")
    monkeypatch.setenv("JUDGE_PRICE_PER_MILLION", "1;2")
    with pytest.raises(ValueError, match="input,output"):
        j.Endpoint.from_environment()
    monkeypatch.setenv("JUDGE_PRICE_PER_MILLION", "0.15, 0.60")
    endpoint = j.Endpoint.from_environment()
    assert endpoint.price == (0.15, 0.60) and KEY not in repr(endpoint)
    monkeypatch.setenv("JUDGE_BASE_URL", "host/v1")
    with pytest.raises(j.JudgeUnavailable, match="JUDGE_BASE_URL"):
        j.Endpoint.from_environment()


def press(view, label):
    buttons = {b.description: b for b in view.children[-1].children}
    buttons[label].click()
    return buttons


def test_rating_by_buttons_is_blind_and_resumes(tmp_path):
    path = tmp_path / "sub" / "ratings.jsonl"
    rater = r.Rater(PAIRS, "Ann", path)
    view = r.rating_widget(rater)
    expected = []
    for label in ("Left better", "Right better", "Tie", "Skip"):
        left, right = rater.order(rater.current)
        shown = [box.value for box in view.children[2].children]
        assert getattr(rater.current, left) in shown[0] and getattr(rater.current, right) in shown[1]
        assert "before" not in "".join(shown) and "after" not in "".join(shown)
        expected.append({"Left better": left, "Right better": right, "Tie": "tie", "Skip": "skip"}[label])
        press(view, label)
    rows = r.read_lines(path)
    assert [row["choice"] for row in rows] == expected
    assert [row["id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert {row["rater"] for row in rows} == {"Ann"} and all(row["time"] for row in rows)
    assert all({row["left"], row["right"]} == {"before", "after"} for row in rows)

    again = r.Rater(PAIRS, "Ann", path)
    assert again.current.id == "p4"
    assert [again.order(p) for p in PAIRS] == [rater.order(p) for p in PAIRS]
    assert r.Rater(PAIRS, "Bob", path).current.id == "p0"
    rewritten = [r.Pair("p0", PAIRS[0].prompt, PAIRS[0].before, "a new text"), *PAIRS[1:]]
    assert r.Rater(rewritten, "Ann", path).current.id == "p0"  # its rating was of another text
    press(view, "Tie")
    buttons = press(view, "Tie")
    assert rater.current is None and all(b.disabled for b in buttons.values())
    press(view, "Tie")
    assert len(r.read_lines(path)) == 6


def test_sides_are_balanced_and_texts_are_escaped(tmp_path):
    rater = r.Rater([r.Pair("x", "<b>p</b>", "<script>1</script>", "")], "Ann", tmp_path / "r.jsonl")
    view = r.rating_widget(rater)
    values = view.children[1].value + "".join(c.value for c in view.children[2].children)
    assert "<script>" not in values and "&lt;b&gt;p" in values and "(empty)" in values
    many = [r.Pair(str(i), "", "b", "a") for i in range(400)]
    left = sum(rater.order(p)[0] == "after" for p in many)
    assert 150 < left < 250
    with pytest.raises(ValueError, match="no choice"):
        rater.choose("A")
    with pytest.raises(ValueError, match="same id"):
        r.Rater([*many, many[0]], "Ann", tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match="no name"):
        r.Rater(many, " ", tmp_path / "r.jsonl")


def rate(rater, choices):
    return [{"rater": rater, "id": str(i), "choice": c} for i, c in enumerate(choices)]


def test_summary_of_ratings():
    summary = r.summarise(rate("Ann", ["after"] * 8 + ["before", "tie", "skip"]))
    assert (summary["n"], summary["after"], summary["before"], summary["tie"]) == (10, 8, 1, 1)
    assert (summary["win_rate"], summary["skipped"]) == (0.85, 1)
    assert summary["p_value"] == pytest.approx(2 * (9 + 1) / 2**9)
    assert summary["kappa"] is None and "two raters" in summary["message"]
    assert r.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's own form
    assert r.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_agreement():
    """Cohen's textbook table of 50: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no gives 0.4."""
    ann = ["after"] * 25 + ["before"] * 25
    bob = ["after"] * 20 + ["before"] * 5 + ["after"] * 10 + ["before"] * 15
    summary = r.summarise(rate("Ann", ann) + rate("Bob", bob))
    assert summary["kappa"] == pytest.approx(0.4) and summary["agreement"] == pytest.approx(0.7)
    assert (summary["n"], summary["ratings"], summary["common_items"]) == (50, 100, 50)
    assert summary["tie"] == 15  # items that the two see differently
    same = r.summarise(rate("Ann", ["after"] * 4) + rate("Bob", ["after"] * 4))
    assert (same["agreement"], same["kappa"]) == (1.0, None) and "undefined" in same["message"]
    changed = r.summarise(rate("Ann", ["after"]) + rate("Ann", ["before"]))
    assert (changed["n"], changed["win_rate"]) == (1, 0.0)  # the last rating counts


def test_no_ratings():
    for none in ([], rate("Ann", ["skip"])):
        summary = r.summarise(none)
        assert summary["n"] == 0 and summary["message"] == "no ratings yet"
        assert all(summary[k] is None for k in ("win_rate", "low", "high", "p_value", "agreement", "kappa"))
