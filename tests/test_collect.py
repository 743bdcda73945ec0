import json
import mailbox
import os
import subprocess
import sys
from collections import Counter
from email.message import EmailMessage

import pytest

from lib import profile
from lib.explore import collect, readers
from lib.explore.collect import deduplicate, exact, near
from lib.explore.readers import Skip, cut, decode
from lib.tasks import Example

WORDS = (
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "harbor",
    "inlet",
    "jetty",
    "kelp",
    "lagoon",
    "marsh",
    "nook",
    "orchard",
    "pier",
)


def sentence(i, n=12):
    """Different words for different i: no two are near-duplicates."""
    return " ".join(f"{WORDS[(i * 7 + k * (i % 5 + 1)) % 16]}{i * 31 + k}" for k in range(n)) + "."


def keep(text, names=()):
    return text


def pairs(read, text):
    return [(p.part, p.prompt, p.target) for p in read(text, keep)]


def run(folder):
    return collect.collect((), folder)


def facts(collection):
    rows = collection.card.itertuples()
    return {(r.what, r.key): r.value for r in rows}


def everything(task):
    return [*task.train, *task.validation, *task.test]


# --- kinds


def test_text_gives_its_first_line_as_prompt_and_goes_on_in_pieces():
    body = "\n\n".join(sentence(i, 30) for i in range(6))
    found = pairs(readers.read_text, f"On kelp\n{body}\n")
    assert found[0][1] == "On kelp\n" and found[0][2].startswith(sentence(0, 30))
    assert len(found) > 1 and found[0][2].endswith(found[1][1].strip())
    assert "".join("".join(t.split()) for _, _, t in found) == "".join(body.split())


@pytest.mark.parametrize("text", ["word " * 600, "无" * 900 + "。", "🌊" * 500, sentence(1, 300)])
def test_a_document_stays_below_1024_bytes_and_nothing_is_lost(text):
    assert "".join("".join(cut(text)).split()) == "".join(text.split())
    for _, prompt, target in pairs(readers.read_text, f"{text[:300]}\n{text}"):
        assert len((prompt + target).encode()) < 1_024


def test_markdown_headings_and_fenced_code():
    text = f"# One\n{sentence(1)}\n```\n# no heading\n```\n## Two\n{sentence(2)}\n"
    found = pairs(readers.read_markdown, text)
    assert [p for _, p, _ in found] == ["One\n", "Two\n"]
    assert "# no heading" in found[0][2] and found[1][2] == sentence(2)


def test_code_gives_signatures_and_docstrings():
    source = (
        "class Loom(Base):\n    '''A loom that weaves text into cloth.'''\n"
        "    def warp(self, n: int = 2) -> str:\n        '''Lay n threads over the frame.\n\n        Twice.'''\n"
        "def bare(): pass\n"
    )
    assert pairs(readers.read_code, source) == [
        ("", "class Loom(Base):\n", "A loom that weaves text into cloth."),
        ("", "def warp(self, n: int=2) -> str:\n", "Lay n threads over the frame.\n\nTwice."),
    ]
    java = "/**\n * Lays the threads over the frame.\n * @param n how many\n */\npublic void warp(int n) {\n}\n"
    assert pairs(readers.read_code, java) == [
        ("", "public void warp(int n)\n", "Lays the threads over the frame.\n@param n how many")
    ]


CHAT = """[2024-05-01 20:15] Mira Holm: hello there
[2024-05-01 20:16] Tobi: hi Mira Holm
how are you
[2024-05-01 20:17] Mira Holm: fine
[2024-05-02 09:00] Tobi: morning
[2024-05-02 09:01] Mira Holm: <Media omitted>
[2024-05-02 09:02] Mira Holm: good morning
"""


def test_a_chat_becomes_replies_of_unnamed_speakers_day_by_day():
    found = pairs(readers.read_text, CHAT)
    assert found == [
        ("0", "A: hello there\nB: ", "hi Mira Holm\nhow are you"),
        ("0", "A: hello there\nB: hi Mira Holm\nhow are you\nA: ", "fine"),
        ("1", "A: morning\nB: ", "good morning"),
    ]
    cleaned = [p.target for p in readers.read_text(CHAT, collect._Found().clean)]
    assert cleaned[0] == "hi [NAME]\nhow are you"


def test_a_comment_ends_at_its_own_end_and_a_paragraph_without_a_title_is_kept():
    source = "/* of the file */ int x;\n/* Lays the threads over it. */\nvoid warp(int n) {\n"
    assert pairs(readers.read_code, source) == [("", "void warp(int n)\n", "Lays the threads over it.")]
    text = " ".join(sentence(i) for i in range(9))
    found = pairs(readers.read_text, text)
    whole = found[0][1] + "".join(t for _, _, t in found)
    assert "".join(whole.split()) == "".join(text.split())


def test_a_speakers_role_or_single_letter_is_no_name():
    rows = [
        {"role": "user", "content": "A user asks"},
        {"role": "A", "content": "A user gets it"},
        {"role": "Mira", "content": ["Mira \ud83d here", 7]},
    ]
    cleaned = [p.target for p in readers.read_json(json.dumps(rows), collect._Found().clean)]
    assert cleaned == ["A user gets it", "[NAME] ? here"]


def test_malformed_mail_is_left_out_and_the_rest_read(tmp_path):
    box = mailbox.mbox(tmp_path / "b.mbox")
    box.add(mail("Keys", f"<p>{sentence(1)}</p><![Zanzibar]> x", html=True))
    box.add(mail("Keys", sentence(2)))
    box.close()
    assert sentence(2) in [p.target for p in readers.read_mail(tmp_path / "b.mbox", keep)]


def test_a_long_line_takes_no_long_time():
    text = "a" * 2_000_000 + "无" * 300_000
    assert "".join(cut(text)) == text  # would run into the timeout were it quadratic


def test_whatsapp_and_json_exports_read_like_the_plain_form():
    whatsapp = (
        "12/31/23, 9:14 PM - Messages and calls are end-to-end encrypted.\n"
        "12/31/23, 9:15 PM - Mira: hello there\n31.12.23, 21:16 - Tobi: hi\n"
    )
    assert [m.text for m in readers.chat_lines(whatsapp)] == ["hello there", "hi"]
    rows = [
        {"from": "Mira", "text": "hello there", "date": "2024-05-01T20:15:00"},
        {"from": "Tobi", "text": ["hi ", {"type": "bold", "text": "you"}], "date": "2024-05-01T20:16"},
    ]
    for value in (rows, {"name": "group", "messages": rows}):
        assert pairs(readers.read_json, json.dumps(value)) == [("0", "A: hello there\nB: ", "hi you")]
    for bad, reason in (("{", "not valid JSON"), ('{"a": 1}', "without messages"), ("[1]", "without")):
        with pytest.raises(Skip, match=reason):
            pairs(readers.read_json, bad)


def mail(subject, body, html=False):
    message = EmailMessage()
    message["From"], message["To"] = "Mira Holm <mira@holm.example>", "t@enk.example"
    message["Subject"] = subject
    message.set_content(body, subtype="html" if html else "plain")
    return message


def test_mail_gives_what_was_written_without_quotes_signature_and_names(tmp_path):
    body = f"{sentence(1)}\nGreetings, Mira Holm\n> old words\n-- \nMira, phone\n"
    (tmp_path / "a.eml").write_bytes(bytes(mail("Re: AW: Keys", body)))
    found = list(readers.read_mail(tmp_path / "a.eml", collect._Found().clean))
    assert [(p.part, p.prompt) for p in found] == [("keys", "Keys\n")]
    assert found[0].target == f"{sentence(1)}\nGreetings, [NAME]"
    box = mailbox.mbox(tmp_path / "b.mbox")
    for i, html in enumerate((False, True)):
        box.add(mail("Keys", f"<p>{sentence(i)}</p><style>x</style>" if html else sentence(i), html))
    box.close()
    targets = [p.target for p in readers.read_mail(tmp_path / "b.mbox", keep)]
    assert targets == [sentence(0), sentence(1)]


# --- bytes


def test_mixed_encodings_are_told_apart():
    chinese = "今天的会议改到下午三点，请大家提前准备好材料，地点不变。" * 4
    french = "L'été dernier, nous avons été très occupés à préparer la fête du collège. " * 4
    assert decode(("\ufeff" + chinese).encode())[0] == chinese
    assert decode(chinese.encode("gb18030"))[0] == chinese
    assert decode(french.encode("cp1252"))[0] == french
    assert decode(french.encode("utf-16"))[0] == french
    assert decode(b"a\r\nb\rc")[0] == "a\nb\nc"
    for binary in (b"\x7fELF\0\0\1", bytes(range(1, 32)) * 20):
        with pytest.raises(Skip, match="binary"):
            decode(binary)


# --- a folder of one's own


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    for i in range(14):
        text = f"Note {i}\n{sentence(i)} Write to mira{i}@holm.example or Jonas Adebri.\n"
        (root / f"note{i}.txt").write_text(text, encoding="utf-8")
    return root


def test_a_folder_is_read_cleaned_and_split_by_file(folder, monkeypatch):
    (folder / "names.txt").write_text("# me\nJonas Adebri\n", encoding="utf-8")
    (folder / "copy.txt").write_bytes((folder / "note3.txt").read_bytes())
    (folder / "image.txt").write_bytes(b"\x89PNG\0\0")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / ".secret.txt").write_text("hidden\n" + sentence(90))
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "x.txt").write_text("installed\n" + sentence(91))
    (folder / "link.txt").symlink_to(folder / "note1.txt")
    (folder / "huge.md").write_text("# x\n" + sentence(92))
    monkeypatch.setitem(readers.BY_SUFFIX, ".md", readers.Kind("markdown", (".md",), readers.read_markdown, 10))
    monkeypatch.setenv("PRIVATE_DATA", str(folder))
    collection = collect.collect(("sacrebleu",))  # the environment's folder goes first
    task, known = collection.task, facts(collection)
    assert collection.own and task.name == "private"
    text = "\n".join(e.prompt + e.target for e in everything(task))
    assert "@" not in text and "Adebri" not in text and "[EMAIL] or [NAME]" in text
    assert "hidden" not in text and "installed" not in text
    assert known["replaced", "email"] == known["replaced", "name"] == 15
    assert known["skipped", "binary"] == known["skipped", "another kind of file"] == 1
    assert known["skipped", "larger than 0 MB"] == 1
    assert known["documents", "exact duplicates removed"] == 1
    assert sum(known["split", s] for s in ("train", "validation", "test")) == 14
    groups = [{e.group for e in split} for split in (task.train, task.validation, task.test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    # what is shown or stored says nothing of a file's name or text
    shown = collection.card.to_csv() + "".join(e.id + e.group for e in everything(task))
    assert "note" not in shown and str(folder) not in shown and "holm" not in shown
    assert (profile.output_root() / "data" / "private" / "private.jsonl").is_file()


def test_the_pieces_of_a_file_stay_together_and_those_of_a_chat_by_day(folder):
    body = "\n\n".join(sentence(i, 40) for i in range(20, 28))
    (folder / "long.txt").write_text(f"A long one\n{body}\n", encoding="utf-8")
    (folder / "chat.txt").write_text(CHAT, encoding="utf-8")
    sizes = Counter(e.group for e in everything(run(folder).task))
    assert sorted(sizes.values(), reverse=True)[:3] == [len(cut(body)), 2, 1] and len(cut(body)) > 2
    assert len(sizes) == 14 + 1 + 2


def test_the_same_files_give_the_same_task_wherever_they_lie(folder, tmp_path):
    first = run(folder).task
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    second = run(moved).task
    assert first.sha256 == second.sha256
    assert [e.id for e in first.test] == [e.id for e in second.test]


def test_bad_folders_are_refused_with_a_sentence(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="PRIVATE_DATA=/no/such is no folder"):
        run("/no/such")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.bin").write_bytes(b"\0\1")
    (empty / "b.txt").write_bytes(b"\0\1")
    with pytest.raises(ValueError, match=r"no readable document \(files skipped: .*1 binary"):
        run(empty)
    for i in range(4, 14):
        (folder / f"note{i}.txt").unlink()
    with pytest.raises(ValueError, match=r"4 documents from 4 files, .* too few to split .* 10"):
        run(folder)
    (folder / "names.txt").write_bytes("Jürgen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt: not UTF-8"):
        run(folder)


def test_a_file_name_that_is_not_utf8_does_no_harm(folder):
    try:
        (folder / os.fsdecode(b"\xc4\xe3.txt")).write_text(f"Named in GBK\n{sentence(50)}\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert len(everything(run(folder).task)) == 15


def test_an_unreadable_file_is_counted_and_the_rest_read(folder, monkeypatch):
    read = type(folder).read_bytes

    def failing(path):
        if path.name == "note5.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(type(folder), "read_bytes", failing)
    assert facts(run(folder))["skipped", "Permission denied"] == 1


# --- duplicates


def test_near_duplicates_go_and_the_first_stays():
    texts = [sentence(1, 40), sentence(2, 40), sentence(1, 39) + " end", sentence(3, 40)]
    assert near(texts) == [0, 1, 3]
    assert exact(["One  two", "one two", "three"]) == [0, 2]
    chinese = "春风又绿江南岸，明月何时照我还，京口瓜洲一水间，钟山只隔数重山"
    assert near([chinese, chinese[:-1] + "川", "床前明月光，疑是地上霜，举头望明月"]) == [0, 2]
    kept = deduplicate([Example(str(i), "p", t, (t,), str(i)) for i, t in enumerate([*texts, texts[3]])])
    assert [e.id for e in kept] == ["0", "1", "3"]


# --- the default


def test_docstrings_of_packages_are_the_same_every_time():
    first, second = (collect.collect(("datasketch", "tqdm")) for _ in range(2))
    assert first.task.sha256 == second.task.sha256 and not first.own
    assert first.task.name == "docstrings" and len(first.task.train) > 20
    assert all(e.prompt.startswith(("def ", "class ")) for e in first.task.train)
    known = facts(first)
    assert known["documents", "kept"] == len(everything(first.task))
    assert any(what == "package" and key.startswith("datasketch ") for what, key in known)
    with pytest.raises(ValueError, match="The package no_such_package is missing"):
        collect.collect(("no_such_package",))


def test_the_folder_stays_out_of_git():
    path = "data/private/private.jsonl"
    done = subprocess.run(["git", "check-ignore", path], cwd=profile.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == path


SENTINELS = (
    "Zanzibar",
    "zanzibar",
    "Quirin",
    "quirin",
    "Kettledrum",
    "琥珀钟楼",
    "203 555 0144",
    "ledgerfile",
    "weaverbird",
)


def mixed_folder(root):
    """Every kind of file, with SENTINELS in texts, names, subjects and file names."""
    contact = "Ask quirin.z@zanzibar.example or Quirin Zabel, +1 203 555 0144."
    for i in range(24):
        text = f"Zanzibar note {i}\n{sentence(i, 20)} {contact}\n"
        (root / f"ledgerfile{i}.txt").write_text(text, encoding="utf-8")
        heading = f"# Kettledrum {i}\n{sentence(i + 30, 20)} Kettledrum.\n"
        (root / f"page{i}.md").write_text(heading, encoding="utf-8")
    code = "".join(f"def weaverbird_{i}(x):\n    '{sentence(i + 60)}'\n" for i in range(6))
    (root / "loom.py").write_text(code, encoding="utf-8")
    for i in range(4):
        body = f"{sentence(i + 70, 20)} The word is Kettledrum. Quirin Zabel\n"
        (root / f"{i}.eml").write_bytes(bytes(mail(f"Zanzibar plans {i}", body)))
    said = "\n".join(
        f"[2024-05-{d:02d} 20:1{k}] {('Quirin Zabel', 'Tobi')[k % 2]}: {sentence(9 * d + k)} zanzibar"
        for d in range(1, 5)
        for k in range(4)
    )
    (root / "chat.txt").write_text(said, encoding="utf-8")
    rows = [{"role": ("user", "assistant")[k % 2], "content": f"the user says {sentence(200 + k)}"} for k in range(4)]
    (root / "talk.json").write_text(json.dumps(rows), encoding="utf-8")
    chinese = "会议纪要\n今天的会议改到下午三点，请大家提前准备好材料，地点在琥珀钟楼旁边，大家不要迟到。"
    (root / "minutes.txt").write_bytes(chinese.encode("gbk"))
    (root / "scan.txt").write_bytes(b"\x89PNG\0\0Zanzibar")
    (root / "names.txt").write_text("Quirin Zabel\n", encoding="utf-8")


def test_a_run_on_a_folder_of_ones_own_needs_one_setting_and_shows_nothing_of_it(tmp_path):
    root, out = tmp_path / "own", tmp_path / "out"
    root.mkdir()
    mixed_folder(root)
    environment = {**os.environ, "PRIVATE_DATA": str(root), "FAST_OUTPUT": str(out)}
    done = subprocess.run(
        [sys.executable, "-m", "lib", "run", "08"], cwd=profile.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    collected = (out / "data/private/private.jsonl").read_text(encoding="utf-8")
    assert all(s in collected for s in ("Zanzibar", "Kettledrum", "weaverbird", "琥珀钟楼"))
    assert not any(s in collected for s in ("quirin", "Quirin", "zanzibar.example", "203 555"))
    assert "the user says" in collected and "[EMAIL] or [NAME], [PHONE]." in collected
    results = (out / "data/results/08_private_domain.json").read_text(encoding="utf-8")
    tables = json.loads(results)["tables"]
    assert {row["task"] for row in tables["before_after"]} == {"private"}
    known = {(row["what"], row["key"]): row["value"] for row in tables["card"]}
    assert known["files", "text"] == 24 + 2 and known["files", "mail"] == 4
    assert known["files", "markdown"] == 24 and known["files", "chat"] == known["files", "code"] == 1
    assert known["encoding", "gb18030"] == known["skipped", "binary"] == 1
    outputs = (out / "notebooks/08_private_domain.ipynb").read_text(encoding="utf-8")
    figures = b"".join(p.read_bytes() for p in sorted((out / "figures").iterdir()))
    shown = results + outputs + done.stdout + done.stderr + figures.decode("utf-8", "ignore")
    assert not [s for s in (*SENTINELS, sentence(0)[:20], sentence(70)[:20]) if s in shown]
    assert not [s for s in SENTINELS if json.dumps(s)[1:-1] in shown]  # as JSON escapes it
    assert "every person whose words are in it" in outputs
