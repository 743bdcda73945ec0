"""The judge's answers and errors without a network, and blind ratings without a browser."""

import itertools
import json
import math
from functools import partial

import httpx2 as httpx  # what openai speaks HTTP by
import openai
import pytest
from notebook_code import defined

from lib import people as p
from lib.hub import Unavailable

NAMES = ("SCORE", "win_rate", "summarise", "RUBRIC", "PATIENCE", "judge_client", "ask", "parse", "judge")
notebook = defined("03_evaluate", *NAMES)
KEY = "sk-secret-0123456789"
PAIRS = [p.Pair(f"p{i}", f"prompt {i} 提示", f"bad text {i}", f"good text {i}") for i in range(6)]
SOON = ("retry-after-ms", "5")  # else the client waits half a second and longer
PAGE = (200, "<html>welcome</html>", ("Content-Type", "text/html"))


def answer(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


def fair(question, _):
    return answer(json.dumps({"winner": "BA"[question.index("good") < question.index("bad")], "reason": "because"}))


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(reply) answers the judge's requests by reply(question, number of the request), and lists the requests."""
    settings = {"PROFILE": "fast", "FAST_OUTPUT": str(tmp_path), "JUDGE_MODEL": "stub", "JUDGE_API_KEY": KEY}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    addresses = (f"http://host-{i}/v1" for i in itertools.count())  # another judge's answers are not this one's

    def start(reply):
        monkeypatch.setenv("JUDGE_BASE_URL", next(addresses))
        seen = []

        def handle(request):
            seen.append(request)
            status, text, *headers = reply(json.loads(request.content)["messages"][-1]["content"], len(seen))
            headers = dict([("Content-Type", "application/json"), *headers])
            return httpx.Response(status, headers=headers, content=text.encode())

        monkeypatch.setattr(openai, "DefaultHttpxClient", partial(httpx.Client, transport=httpx.MockTransport(handle)))
        return seen

    return start


def test_fair_judge(serve, tmp_path):
    seen = serve(fair)
    table, summary = notebook.judge([*PAIRS, p.Pair("worse", "p", "good", "bad")])
    assert table["id"].tolist() == [*(f"p{i}" for i in range(6)), "worse"]
    assert table["winner"].tolist() == table["before_first"].tolist() == ["after"] * 6 + ["before"]
    assert (summary["win_rate"], summary["n"], len(seen)) == (pytest.approx(6 / 7), 7, 14)
    assert summary["disagreement_rate"] == 0 and summary["p_value"] == pytest.approx(2 * 8 / 2**7)
    asked = {(str(r.url), r.headers["Authorization"]) for r in seen}
    assert asked == {("http://host-0/v1/chat/completions", f"Bearer {KEY}")}
    assert all(x["temperature"] == 0 and x["model"] == "stub" for x in (json.loads(r.content) for r in seen))
    written = [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(KEY in text for text in written)


def test_position_biased_judge_wins_nothing(serve):
    serve(lambda *_: answer('{"winner": "A"}'))
    table, summary = notebook.judge(PAIRS)
    assert set(table["winner"]) == {"tie"} and set(table["before_first"]) == {"before"}
    assert (summary["disagreement_rate"], summary["win_rate"], summary["p_value"]) == (1.0, 0.5, None)


def test_interrupted_judging_pays_once(serve):
    seen = serve(lambda q, n: fair(q, n) if n <= 5 else (400, "{}"))
    for pairs in (PAIRS, [PAIRS[0]._replace(after="another good text")]):
        with pytest.raises(Unavailable, match="400"):
            notebook.judge(pairs)
    _, summary = notebook.judge(PAIRS[:2])  # its four answers are kept: the server is not asked
    assert (summary["n"], len(seen)) == (2, 7)


@pytest.mark.parametrize("status", [429, 503])
def test_tries_again_and_gives_up_with_a_sentence(serve, status):
    seen = serve(lambda q, n: (status, KEY, SOON) if n <= 2 else fair(q, n))
    assert notebook.judge(PAIRS[:1])[0]["winner"].item() == "after" and len(seen) == 4
    seen = serve(lambda *_: (status, KEY, SOON))
    with pytest.raises(Unavailable, match=f"answered {status}: try again") as error:
        notebook.judge(PAIRS[:1])
    assert len(seen) == 5 and KEY not in str(error.value)


def test_key_is_in_no_message_and_does_not_follow_a_redirect(serve):
    seen = serve(lambda *_: (401, json.dumps({"error": {"message": f"wrong key {KEY}"}})))
    with pytest.raises(Unavailable, match=r"401.*JUDGE_API_KEY") as error:
        notebook.judge(PAIRS[:1])
    assert len(seen) == 1 and KEY not in f"{error.value} {error.value.__cause__}" and error.value.__suppress_context__
    seen = serve(lambda *_: (302, "", ("Location", "http://elsewhere/v1/chat/completions")))
    with pytest.raises(Unavailable, match="302"):
        notebook.judge(PAIRS[:1])
    assert len(seen) == 1


def test_unparsable_replies_are_counted(serve):
    serve(lambda q, n: answer("I like both.") if "prompt 0" in q else fair(q, n))
    table, summary = notebook.judge(PAIRS)
    assert table["winner"].isna().tolist() == [True] + [False] * 5
    assert (summary["unparsable"], summary["n"], summary["win_rate"]) == (1, 5, 1.0)


def silent(*_):
    raise httpx.ReadTimeout("slow")


@pytest.mark.parametrize("reply", [silent, lambda *_: PAGE, lambda *_: (200, "[]"), lambda *_: (200, "{}")])
def test_what_is_no_answer_is_said(serve, reply, monkeypatch):
    monkeypatch.setitem(notebook.PATIENCE, "max_retries", 0)
    serve(reply)
    with pytest.raises(Unavailable, match=r"gave no answer .*end in /v1\? Else try again later"):
        notebook.judge(PAIRS)


@pytest.mark.parametrize(
    "reply, expected",
    [
        ('```json\n{"winner": "b", "reason": "has } and { in it"}\n```', "b"),
        ('Sure! {"winner": "Tie"} Bye.', "tie"),
        ('<think>{"winner": "A"}</think>{"winner": "B"}', "b"),
        ('{"winner": "A", "reason": "not \\"winner\\": \\"B\\""}', "a"),
        ('{"winner": "A"} or rather {"winner": "B"}', None),
        ('{"winner": "A', None),
    ],
)
def test_parse(reply, expected):
    assert notebook.parse(reply) == expected


def test_without_a_judge_a_sentence_says_so(monkeypatch):
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable, match="JUDGE_BASE_URL, JUDGE_MODEL, JUDGE_API_KEY"):
        notebook.judge(PAIRS)
    for url, key in (("https://h/v1", f"{KEY}钥"), ("https://h/v1", f"{KEY}\n{KEY}"), ("host/v1", KEY)):
        for name, value in (("MODEL", "m"), ("BASE_URL", url), ("API_KEY", key)):
            monkeypatch.setenv(f"JUDGE_{name}", value)
        with pytest.raises(Unavailable, match="https://host/v1") as error:
            notebook.judge_client()
        assert KEY not in str(error.value)


def test_rating_by_buttons_is_blind_and_resumes(tmp_path):
    path = tmp_path / "sub" / "ratings.jsonl"
    view = p.rating_widget(PAIRS, "Ann", path)
    buttons = {b.description: b for b in view.children[-1].children}
    expected = []
    for label, pair in zip(("Left better", "Right better", "Tie", "Skip"), PAIRS, strict=False):
        left, right = p.sides("Ann", pair)
        shown = [box.value for box in view.children[2].children]
        assert getattr(pair, left) in shown[0] and getattr(pair, right) in shown[1]
        assert "before" not in "".join(shown) and "after" not in "".join(shown)
        expected.append({"Left better": left, "Right better": right}.get(label, label.lower()))
        buttons[label].click()
    rows = p.read_lines(path)
    assert [(row["rater"], row["id"]) for row in rows] == [("Ann", f"p{i}") for i in range(4)]
    assert [row["choice"] for row in rows] == expected
    assert all({row["left"], row["right"]} == {"before", "after"} and row["time"] for row in rows)
    rewritten = [PAIRS[0]._replace(after="a new text"), *PAIRS[1:]]
    for pairs, rater, number in ((PAIRS, "Ann", 4), (PAIRS, "Bob", 0), (rewritten, "Ann", 0)):
        assert f"prompt {number} " in p.rating_widget(pairs, rater, path).children[1].value
    assert view.children[0].value == "Ann: 3 of 6 rated, 1 skipped"
    buttons["Tie"].click()
    buttons["Tie"].click()
    assert "Done" in view.children[1].value and all(b.disabled for b in buttons.values())


def test_sides_are_balanced_and_texts_are_escaped(tmp_path):
    pair = p.Pair("x", "<b>p</b>", "<script>1</script>", "")
    view = p.rating_widget([pair], "Ann", tmp_path / "r.jsonl")
    values = view.children[1].value + "".join(c.value for c in view.children[2].children)
    assert "<script>" not in values and "&lt;b&gt;p" in values and "(empty)" in values
    assert 150 < sum(p.sides("Ann", pair._replace(id=str(i)))[0] == "after" for i in range(400)) < 250


def rate(rater, choices):
    return [{"rater": rater, "choice": c, **p.Pair(str(i), "", "", "")._asdict()} for i, c in enumerate(choices)]


def test_summary_of_ratings_and_agreement():
    summary = notebook.summarise(rate("Ann", ["after"] * 8 + ["before", "tie", "skip"]))
    assert (summary["n"], summary["after"], summary["before"], summary["tie"]) == (10, 8, 1, 1)
    assert (summary["win_rate"], summary["skipped"]) == (0.85, 1) and math.isnan(summary["kappa"])
    assert summary["p_value"] == pytest.approx(2 * (9 + 1) / 2**9)
    half = notebook.win_rate([1.0, 0.0] * 5)
    assert (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's own form
    twice = notebook.summarise(rate("Ann", ["after"]) + rate("Ann", ["before"]))
    assert twice["win_rate"] == 0  # the last rating counts
    assert notebook.summarise([])["win_rate"] is notebook.summarise(rate("Ann", ["skip"]))["win_rate"] is None
    # Cohen's textbook table of 50: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no gives 0.4
    ann = ["after"] * 25 + ["before"] * 25
    bob = ["after"] * 20 + ["before"] * 5 + ["after"] * 10 + ["before"] * 15
    summary = notebook.summarise(rate("Ann", ann) + rate("Bob", bob))
    assert summary["kappa"] == pytest.approx(0.4) and summary["agreement"] == pytest.approx(0.7)
    assert (summary["n"], summary["ratings"], summary["raters"]) == (50, 100, 2)
    assert summary["tie"] == 15  # items that the two see differently
