"""The command line: every command's target exists, bad input is one sentence and exit status 1; README's commands."""

import importlib
import re

import pytest

from lib import profile
from lib.__main__ import COMMANDS, main
from lib.report import fill

README, REPORT, CARDS = ((profile.ROOT / n).read_text("utf-8") for n in (*fill.FILES, "data/README.md"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_target_and_a_help(name, capsys):
    target, text, _ = COMMANDS[name]
    if isinstance(target, str):
        module, _, function = target.rpartition(".")
        target = getattr(importlib.import_module(module), function)
    assert callable(target)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and text.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run 77", "ValueError: No notebook '77'; there are 01_load_and_generate"),
        ("finetune --set learning_rate=fast", "ValueError: could not convert string to float: 'fast'"),
        ("finetune --set lr=1", "ValueError: Setting 'lr' is unknown; known: method, seed, train_tokens"),
        ("finetune --set learning_rate", "ValueError: --set learning_rate: give it a value, such as --set"),
        ("finetune --set gradient_checkpointing=on", "ValueError: --set gradient_checkpointing: give it a value"),
        ("finetune --set pack_length=-1", "ValueError: pack_length=-1: give a number above 0."),
        ("finetune --set weight_decay=nan", "ValueError: weight_decay=nan: give a number from 0 on."),
        ("finetune --set seed=1", "ValueError: --set seed=1: use --seed 1."),
        ("finetune --task nothing", "ValueError: TASK='nothing' is unknown: choose debian"),
        ("fetch gold", "ValueError: Nothing is called 'gold'"),
    ],
)
def test_bad_input_is_one_sentence(command, says, capsys, monkeypatch):
    monkeypatch.setenv("TASK", "")  # and what an option sets goes with the test
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith(says) and error.count("\n") == 1


def test_readmes_commands_and_links_exist():
    assert set(re.findall(r"python -m lib (\w+)", README)) <= set(COMMANDS)
    headings = re.findall(r"^#+ (.*)$", REPORT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    linked = re.findall(r"\(report\.md#([^)]+)\)", README)
    assert len(linked) >= len(re.findall(r"^### 6\.", REPORT, re.MULTILINE)) and set(linked) <= anchors
    assert fill.places(CARDS, profile.ROOT) == [], "what the data cards point to"
