"""lib.explore.anonymise and .private: personal data found, files read, nothing of one's own folder shown."""

import contextlib
import json
import mailbox
import os
import re
import subprocess
import sys
from collections import Counter
from email.message import EmailMessage

import pytest
from notebook_code import defined

from lib import profile, results
from lib.explore import anonymise, private
from lib.explore.anonymise import LABELLED, find, plain, read_names
from lib.explore.private import Skip, cut, deduplicate, triples
from lib.texts import without_near_duplicates

NAMES = read_names(LABELLED / "names.txt")
CATEGORIES = {category for category, *_ in anonymise.RULES} | {"name"}
labelled = defined("08_private_domain", "labelled").labelled
WORDS = "amber basin cedar delta ember fjord grove harbor inlet jetty kelp lagoon marsh nook orchard pier".split()  # noqa: SIM905


def sentence(i, n=12):
    """Different words for different i: no two are near-duplicates."""
    return " ".join(f"{WORDS[(i * 7 + k * (i % 5 + 1)) % 16]}{i * 31 + k}" for k in range(n)) + "."


def items(text, names=()):
    return [(f.category, text[f.start : f.end]) for f in find(text, names)]


LOOK_ALIKES = [
    "card 4000 5749 1186 2529, one digit off",
    "IBAN GB35ZZZZ13962459571177, one digit off",
    "the number 994205197511020758, one digit off",
    "the number 994205197513020754 whose month is 13",
    "version 10.3.44.7, then 192.0.2.7 and 127.0.0.1, 10.0.0.0/8, 2001:0::/32",
    "std::map x[::2] 12:34:56 2001:db8::7",
    "token = tokenizer.decode(ids), password = getpass(), max_tokens=100000",
    "commit ed46725a2a7b860dcd6c8a1f8b46287cced9041d of 2024-01-15",
    "ISBN 978-3-16-148410-0, react@18.2.0, icon@2x.png, git@holm.example:x",
    "a loss of 0.755190908908844, a time of 2147483647, the years 1990-1995",
    "https://holm.example/home/index.html, /home/$USER, C:\\Users\\Public\\x",
    "available at holm.example, meet us @ holm.example, y = x @ self.weight + w @ b.info(3)",
    "sums 1201\n1320\n1450\n1512, 一二三四五六七, order 6200008084828070686, AKIDO, SG.x",
]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to a.b+c@sub.holm.example.", [("email", "a.b+c@sub.holm.example")]),
        ("邮箱a@holm.example，电话19900001111。", [("email", "a@holm.example"), ("phone", "19900001111")]),
        ("call (+44 20 7946 0000) by day", [("phone", "+44 20 7946 0000")]),
        ("传真０１０-５５５５０１０１。", [("phone", "０１０-５５５５０１０１")]),
        ("(202) 555-0187 or 030 23125 042", [("phone", "(202) 555-0187"), ("phone", "030 23125 042")]),
        ("IBAN DE18 0009 0786 6661 7603 13 ABC", [("id", "DE18 0009 0786 6661 7603 13")]),
        ("from 10.3.44.7:22 and fd00::12", [("ip", "10.3.44.7"), ("ip", "fd00::12")]),
        ("at 10.3.44.7/80 or 10.3.44.8/24", [("ip", "10.3.44.7"), ("ip", "10.3.44.8")]),
        ("in /home/kim/x or C:\\Users\\Kim L\\x", [("path", "/home/kim"), ("path", "C:\\Users\\Kim L")]),
        ("2024-01-02 0171 39200 21, （19900001234）", [("phone", "0171 39200 21"), ("phone", "19900001234")]),
        ("mail kim@\n> a.test\nor k\u200b@a.test", [("email", "kim@\n> a.test"), ("email", "k\u200b@a.test")]),
        *((text, []) for text in LOOK_ALIKES),
    ],
)
def test_each_kind_is_found_with_exact_bounds(text, wanted):
    assert items(text) == wanted


def test_names_come_from_the_list_alone_and_items_are_replaced():
    names = ["Mira Holm", "Will", "李雷"]
    text = "mira  holm, Holm, Mira and Will will ask 李雷, not Willa or Mira Holmes."
    assert [t for _, t in items(text, names)] == ["mira  holm", "Holm, Mira", "Will", "李雷"]
    assert items(text) == [] == items(text, ["", " "])
    out, counts = anonymise.anonymise("Mira Holm <m@holm.example>, m@holm.example: 10.0.0.8.", ["Mira Holm"])
    assert out == "[NAME] <[EMAIL]>, [EMAIL]: [IP]." and counts == {"name": 1, "email": 2, "ip": 1}
    assert anonymise.anonymise(out, ["Mira Holm"]) == (out, {})  # nothing of a mark is personal


def test_no_pattern_takes_long_on_hostile_text():
    pieces = "1 |a.|0-|A1 |x@|::|token=|12.|(0) |mail|  |0-|一 |%4|=\n|C:\\Users\\|ab at c dot |pass_|mail"
    for piece in pieces.split("|"):
        find(piece * 10_000)  # quadratic patterns would run into the timeout
    assert len(find("".join(f"10.3.{i // 250}.{i % 250} GET /\n" for i in range(20_000)))) == 20_000
    text = "a" * 2_000_000 + "无" * 300_000
    assert "".join(cut(text)) == text


def counts(half: str) -> dict[tuple[str, str], list[int]]:
    """Per category and per kind of text: found, labelled, correct."""
    out = {("category", category): [0, 0, 0] for category in (*CATEGORIES, "all")}
    for text, wanted, kind, speakers in labelled(half):
        found = find(text, NAMES, speakers)
        for at, some in enumerate((found, wanted, {*found} & {*wanted})):
            for item in some:
                for key in (("category", item.category), ("category", "all"), ("kind", kind)):
                    out.setdefault(key, [0, 0, 0])[at] += 1
    return out


@pytest.mark.parametrize("half", ["tune", "test"])
def test_the_anonymiser_reaches_what_the_project_promises(half):
    every = counts(half)
    for key in [("category", "all"), *(key for key in every if key[0] == "kind")]:
        found, wanted, correct = every[key]
        assert correct >= 0.95 * wanted and correct >= 0.9 * found, key
    tables = results.load("08_private_domain", profile.DATA / "results")["tables"]  # shipped: those of the test half
    by = {"category": tables["anonymiser"], "kind": tables["anonymiser_by_kind"]}
    shipped = {(k, r[k]): [r["found"], r["labelled"], r["correct"]] for k, rows in by.items() for r in rows}
    assert half == "tune" or shipped == every


def test_in_ordinary_text_nothing_is_taken_for_personal():
    for name in ("debian", "release_notes", "tang", "idioms"):
        for path in (profile.DATA / name).glob("*.jsonl"):
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()[::10]):
                assert items("\n".join(v for v in row.values() if isinstance(v, str))) == []


def test_the_labelled_set_is_large_held_apart_and_invented():
    halves = {half: labelled(half) for half in ("tune", "test")}
    texts = [text for rows in halves.values() for text, *_ in rows]
    assert len(set(texts)) == len(texts)
    for rows in halves.values():
        own = Counter(item.category for _, spans, *_ in rows for item in spans)
        assert set(own) == CATEGORIES and min(own.values()) >= 10 and own.total() >= 120
        kinds = Counter(kind for _, spans, kind, _ in rows for _ in spans)
        assert min(kinds.values()) >= 8 and sum(not spans for _, spans, *_ in rows) >= 25  # traps
        for text, spans, *_ in rows:
            for item in (plain(text[s.start : s.end], ("",))[0].lower() for s in spans if s.category == "email"):
                assert re.search(r"(\. ?|\bdot[\])}> ]*)(example|test)$", item), item  # RFC 2606: not of the real world


def clean(text, people=()):
    return anonymise.anonymise(text, (), people)[0]


@pytest.mark.parametrize("text", ["word " * 600, "无" * 900 + "。", "🌊" * 500, sentence(1, 300)])
def test_a_document_stays_below_1024_bytes_and_nothing_is_lost(text):
    assert "".join("".join(cut(text)).split()) == "".join(text.split())
    for _, prompt, target in private.read_text(f"{text[:300]}\n{text}", clean, Counter()):
        assert len((prompt + target).encode()) < 1_024


def test_headings_first_lines_and_fenced_code():
    text = f"# One\n{sentence(1)}\n```\n# no heading\n```\n## Two\n{sentence(2)}\n"
    found = list(private.read_text(text, clean, Counter()))
    assert [p for _, p, _ in found] == ["One\n", "Two\n"]
    assert "# no heading" in found[0][2] and found[1][2] == sentence(2)
    blank = f"# {chr(0x3000) * 90}\n"
    assert list(private.read_text(f"{text}{blank}{sentence(3)}\n", clean, Counter()))[:2] == found
    body = "\n\n".join(sentence(i, 30) for i in range(6))  # plain text: the first line is the first prompt
    found = list(private.read_text(f"On kelp\n{body}\n", clean, Counter()))
    assert found[0][1] == "On kelp\n" and len(found) > 1 and found[0][2].endswith(found[1][1].strip())
    assert "".join("".join(t.split()) for _, _, t in found) == "".join(body.split())


def test_code_gives_signatures_and_docstrings():
    source = "class Loom(Base):\n    '''A loom that weaves text into cloth.'''\n"
    source += "    def warp(self, n: int = 2) -> str:\n        '''Lay n threads over the frame.\n\n        Twice.'''\n"
    source += "def bare(): pass\nclass Bare: 'Nothing to inherit from.'\n"
    source += f"def deep(n={'1+' * 900}1):\n    'Skipped, since its signature cannot be written out.'\n"
    assert list(private.read_code(source, clean, Counter())) == [
        ("", "class Loom(Base):\n", "A loom that weaves text into cloth."),
        ("", "class Bare:\n", "Nothing to inherit from."),
        ("", "def warp(self, n: int=2) -> str:\n", "Lay n threads over the frame.\n\nTwice."),
    ]
    with pytest.raises(Skip, match="not valid Python"):
        list(private.read_code("void warp(int n) {\n", clean, Counter()))


CHAT = """[2024-05-01 20:15] Mira Holm: hello there
[2024-05-01 20:16] Tobi: hi Mira Holm
how are you
[2024-05-01 20:17] Mira Holm: fine
[2024-05-02 09:00] Tobi: morning
[2024-05-02 09:01] Mira Holm: <Media omitted>
[2024-05-02 09:02] Mira Holm: good morning
"""


def test_a_chat_becomes_replies_of_unnamed_speakers_day_by_day():
    assert list(private.read_text(CHAT, clean, Counter())) == [
        ("0", "A: hello there\nB: ", "hi [NAME]\nhow are you"),
        ("0", "A: hello there\nB: hi [NAME]\nhow are you\nA: ", "fine"),
        ("1", "A: morning\nB: ", "good morning"),
    ]
    said = CHAT.replace("Mira Holm", "user").replace("Tobi", "A")  # a role and a letter are no names to be replaced
    assert next(t for _, _, t in private.read_text(said, clean, Counter())) == "hi user\nhow are you"
    whatsapp = "12/31/23, 9:14 PM - Now encrypted.\n12/31/23, 9:15 PM - Mira: hello\n31.12.23, 21:16 - Tobi: hi\n"
    assert [text for _, _, text in private.chat_messages(whatsapp)] == ["hello", "hi"]


WECHAT = "Ben 2023-12-20 17:47:11\n你好，Anna Lund\n\nAnna Lund 2023-12-20 17:48:02\n好的Ben\n明天见\n[图片]\n\n"
WECHAT += "Ben 2023-12-21 8:00:00\n[图片]\n\nAnna Lund 2023-12-21 8:01:00\nAnna不来了\n"
QQ = f"消息记录（此消息记录为文本格式，不支持重新导入）\n\n{'=' * 60}\n消息分组:我的好友\n{'=' * 60}\n消息对象:Ben\n\n"
QQ += re.sub(r"(?m)^(\w+|Anna Lund) (2023\S+ \S+)$", r"\2 【群主】\1(12345678)", WECHAT)


@pytest.mark.parametrize("text", [WECHAT, QQ, QQ.replace("【群主】", ""), WECHAT.replace("2023-12-2", "2023/12/2")])
def test_wechat_and_qq_exports_are_chats(text):
    known = Counter()
    assert list(private.read_text(text, clean, known)) == [("0", "A: 你好，[NAME]\nB: ", "好的[NAME]\n明天见")]
    assert known == {("messages", "chat"): 4, ("speakers", "chat"): 2}
    log = "2023-12-20 17:47:11 started\n2023-12-20 17:47:12 stopped\n2023-12-20 17:47:13 cleaned\n"
    assert private.chat_messages(log) == [] == private.chat_messages(f"{sentence(1)}\n" * 9 + WECHAT[:60])


def test_a_chat_in_json_reads_like_the_plain_form():
    tobi = {"date": "2024-05-01T20:15", "from": "Tobi"}
    mira = tobi | {"from": "Mira Holm", "text": ["see ", {"type": "link", "text": "kelp"}]}
    rows = [mira, tobi | {"text": "thanks Mira Holm"}, tobi | {"text": {"no": "text"}}, "no message"]
    reply = [("0", "A: see kelp\nB: ", "thanks [NAME]")]
    assert all(list(private.read_json(json.dumps(x), clean, Counter())) == reply for x in (rows, {"messages": rows}))
    for bad in ("[1", "3", '{"messages": [{"text": "x"}]}'):
        with pytest.raises(Skip, match=r"not valid JSON|JSON without"):
            list(private.read_json(bad, clean, Counter()))


def mail(subject, body, charset="utf-8"):
    """A message with an attachment whose text does not count."""
    message = EmailMessage()
    message["From"], message["To"] = '"Holm, Mira" <mira@holm.example>', "Tobi Enk <t@enk.example>"
    message["Subject"] = subject
    message.set_content(body, charset=charset)
    message.add_alternative(f"<p>{body} in HTML</p>", subtype="html")
    message.add_attachment("attached text", filename="a.txt")
    return message


def test_mail_gives_what_its_sender_wrote(tmp_path):
    body = "Dear Tobi Enk,\nthe kelp is drying on the pier. Mira Holm\n> quoted\n"
    end = "\nOn Mon, 1 May 2024, Tobi Enk\n<t@enk.example> wrote:\nearlier words"
    (tmp_path / "a.eml").write_bytes(bytes(mail("Re: AW: On kelp of Tobi Enk", body + end)))
    wanted = ("on kelp of tobi enk", "On kelp of [NAME]\n", "Dear [NAME],\nthe kelp is drying on the pier. [NAME]")
    assert list(private.read_mail(tmp_path / "a.eml", clean, Counter())) == [wanted]
    chinese = "明天下午的会议改到三点开始，请大家带上海带的样品和记录。"
    box = mailbox.mbox(tmp_path / "b.mbox")
    box.add(mail("回复：会议", f"{chinese}\n-- \nsignature", "gb18030"))
    box.add(b"Subject: broken\nContent-Type: text/plain; charset=none-such\n\nwords that nobody can read \0\xff\n")
    box.add(b"Subject: escape\n\nFrom here on the path is steep and wet.\n>quoted\n")  # mailbox writes >From
    box.add(b"\n\n")
    box.close()
    known, escaped = Counter(), ("escape", "escape\n", "From here on the path is steep and wet.")
    assert list(private.read_mail(tmp_path / "b.mbox", clean, known)) == [("会议", "会议\n", chinese), escaped]
    assert known == {("messages", "mail"): 3, ("messages", "mail that is malformed"): 1}


# as declared, as it is; 镕 is beyond GB 2312
@pytest.mark.parametrize("kind", ["gb2312 gb18030", " gbk", " utf-8", "utf-8 gbk"])
@pytest.mark.parametrize("subject", ["会议", "=?gb2312?B?u+HS6Q==?="])
def test_mail_is_read_whatever_it_says_of_its_encoding(tmp_path, kind, subject):
    declared, charset = kind.split(" ")
    body = "陈砚秋，朱镕的材料明天下午三点以前交到办公室，请大家互相转告。"
    head = f"Content-Type: text/plain; charset={declared}\n" if declared else ""
    text = f"From: 陈砚秋 <c@holm.example>\nSubject: {subject}\n{head}Content-Transfer-Encoding: 8bit\n\n{body}\n"
    (tmp_path / "a.eml").write_bytes(text.encode(charset))
    wanted = ("会议", "会议\n", body.replace("陈砚秋", "[NAME]"))
    assert list(private.read_mail(tmp_path / "a.eml", clean, Counter())) == [wanted]


def test_mixed_encodings_are_told_apart():
    chinese = "今天的会议改到下午三点，请大家提前准备好材料，地点不变。" * 4
    french = "L'été dernier, nous avons été très occupés à préparer la fête du collège. " * 4
    for text, encoding in ((chinese, "utf-8-sig"), (chinese, "gb18030"), (french, "cp1252"), (french, "utf-16")):
        assert private.decode(text.encode(encoding))[0] == text
    assert private.decode(b"a\r\nb\rc")[0] == "a\nb\nc"
    for binary in (b"\x7fELF\0\0\1", bytes(range(1, 32)) * 20):
        with pytest.raises(Skip, match="binary"):
            private.decode(binary)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    for i in range(14):
        text = f"Note {i}\n{sentence(i)} Write to mira{i}@holm.example or Jonas Adebri.\n"
        (root / f"note{i}.txt").write_text(text, encoding="utf-8")
    return root


def test_a_folder_is_read_cleaned_and_split_by_file(folder, monkeypatch):
    (folder / "Names.txt").write_text("# me\nJonas Adebri\n", encoding="utf-8")  # as a Mac's or Windows' user may say
    (folder / "._note1.txt").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / "lost.txt").write_text(f"A lost letter\n{sentence(93)} caf\ufffd.\n", encoding="utf-8")
    (folder / "copy.txt").write_bytes((folder / "note3.txt").read_bytes())
    (folder / "image.txt").write_bytes(b"\x89PNG\0\0")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / ".secret.txt").write_text("hidden\n" + sentence(90), "utf-8")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "x.txt").write_text("installed\n" + sentence(91), "utf-8")
    with contextlib.suppress(OSError):  # of Windows, where not every user may make links
        (folder / "link.txt").symlink_to(folder / "note1.txt")
    (folder / "huge.md").write_text("# x\n" + sentence(92, 200), "utf-8")
    (folder / "chat.txt").write_text(CHAT, encoding="utf-8")
    monkeypatch.setattr(private, "LARGEST", 1_500)
    monkeypatch.setenv("PRIVATE_DATA", str(folder))
    collection = private.collect(("sacrebleu",))  # the environment's folder goes first
    task, known = collection.task, {(r.what, r.key): r.value for r in collection.card.itertuples()}
    assert collection.own and task.name == "private"
    text = "\n".join(row["prompt"] + row["target"] for split in task for row in task[split])
    assert "[EMAIL] or [NAME]" in text and not any(s in text for s in ("@", "Adebri", "hidden", "installed", "\ufffd"))
    assert known["replaced", "email"] == 15 and known["replaced", "name"] == 16
    assert known["messages", "chat"] == 6 and known["speakers", "chat"] == 2
    assert known["left out", "documents with unreadable characters"] == known["left out", "unreadable characters"] == 1
    assert known["skipped", "binary"] == known["skipped", "another kind of file"] == known["skipped", "too large"] == 1
    assert known["documents", "exact duplicates removed"] == 1
    assert sum(known["split", s] for s in ("train", "validation", "test")) == 14 + 3
    assert sum(known["groups", s] for s in ("train", "validation", "test")) == 14 + 2  # of a chat, the day
    groups = [{row["group"] for row in task[split]} for split in task]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    folder.rename(folder.with_name("elsewhere"))  # the same files give the same task wherever they lie
    assert private.collect((), folder.with_name("elsewhere")).task.sha256 == task.sha256


def test_bad_folders_are_refused_with_a_sentence(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="PRIVATE_DATA=/no/such is no folder"):
        private.collect((), "/no/such")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "b.txt").write_bytes(b"\0\1")
    with pytest.raises(ValueError, match=r"no readable document \(files skipped: .*1 binary"):
        private.collect((), empty)
    for i in range(4, 14):
        (folder / f"note{i}.txt").unlink()
    with pytest.raises(ValueError, match=r"4 .*groups .* too few to split .* 10"):
        private.collect((), folder)
    (folder / "names.txt").write_bytes("Jürgen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt: not UTF-8"):
        private.collect((), folder)


def test_near_duplicates_go_and_the_first_stays():
    texts = [sentence(1, 40), sentence(2, 40), sentence(1, 39) + " end", sentence(3, 40)]
    assert without_near_duplicates([*map(triples, texts)]) == [0, 1, 3]
    chinese = "春风又绿江南岸，明月何时照我还，京口瓜洲一水间，钟山只隔数重山"
    poems = [chinese, chinese[:-1] + "川", "床前明月光，疑是地上霜，举头望明月"]
    assert without_near_duplicates([*map(triples, poems)]) == [0, 2]
    assert len(deduplicate([{"id": "", "target": t} for t in (*texts, texts[3].upper() + " ")])) == 3


SENTINELS = ("Zanzibar", "zanzibar", "Quirin", "quirin", "Kettledrum", "琥珀钟楼", "203 555 0144", "ledgerfile")
SENTINELS += ("weaverbird",)  # in texts, names, subjects and file names


def test_a_run_on_a_folder_of_ones_own_needs_one_setting_and_shows_nothing_of_it(tmp_path):
    root, out = tmp_path / "own", tmp_path / "out"
    root.mkdir()
    contact = "Ask quirin.z@zanzibar.example or Quirin Zabel, +1 203 555 0144."
    for i in range(24):
        (root / f"ledgerfile{i}.txt").write_text(f"Zanzibar note {i}\n{sentence(i, 20)} {contact}\n", "utf-8")
        (root / f"page{i}.md").write_text(f"# Kettledrum {i}\n{sentence(i + 30, 20)} Kettledrum.\n", "utf-8")
    code = "".join(f"def weaverbird_{i}(x):\n    '{sentence(i + 60)}'\n" for i in range(6))
    (root / "loom.py").write_text(code, encoding="utf-8")
    chinese = "会议纪要\n今天的会议改到下午三点，请大家提前准备好材料，地点在琥珀钟楼旁边，大家不要迟到。"
    (root / "minutes.txt").write_bytes(chinese.encode("gbk"))
    (root / "letter.eml").write_bytes(bytes(mail("Kettledrum", f"Zanzibar, {sentence(90)} {contact}")))
    (root / "names.txt").write_text("Quirin Zabel\n", encoding="utf-8")
    environment = {**os.environ, "PRIVATE_DATA": str(root), "FAST_OUTPUT": str(out)}
    command = [sys.executable, "-m", "lib", "run", "08"]
    done = subprocess.run(command, cwd=profile.ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    collected = (out / "data/private/private.jsonl").read_text(encoding="utf-8")
    assert all(s in collected for s in ("Zanzibar", "Kettledrum", "weaverbird", "琥珀钟楼"))
    assert not any(s in collected for s in ("quirin", "Quirin", "zanzibar.example", "203 555"))
    assert "[EMAIL] or [NAME], [PHONE]." in collected
    written = (out / "data/results/08_private_domain.json").read_text(encoding="utf-8")
    assert {row["task"] for row in json.loads(written)["tables"]["before_after"]} == {"private"}
    outputs = (out / "notebooks/08_private_domain.ipynb").read_text(encoding="utf-8")
    figures = b"".join(p.read_bytes() for p in sorted((out / "figures").iterdir()))
    shown = written + outputs + done.stdout + done.stderr + figures.decode("utf-8", "ignore")
    assert not [s for s in (*SENTINELS, sentence(0)[:20]) if s in shown]
    assert not [s for s in SENTINELS if json.dumps(s)[1:-1] in shown]  # as JSON escapes it
    assert "every person whose words are in it" in outputs
    assert subprocess.run(["git", "check-ignore", "-q", "data/private/x.jsonl"], cwd=profile.ROOT).returncode == 0
