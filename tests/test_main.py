"""The command line: every command's target exists, bad input is one sentence and exit status 1."""

import importlib

import pytest

from lib.__main__ import COMMANDS, main


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
    ("arguments", "says"),
    [
        (["run", "77"], "ValueError: No notebook '77'; there are 01_load_and_generate"),
        (["finetune", "--set", "learning_rate=fast"], "ValueError: could not convert string to float: 'fast'"),
        (["finetune", "--set", "lr=1"], "ValueError: Setting 'lr' is unknown; known: method, seed, train_tokens"),
        (["finetune", "--set", "seed=1"], "ValueError: --set seed=1: use --seed 1."),
        (["finetune", "--task", "nothing"], "ValueError: TASK='nothing' is unknown: choose debian"),
        (["fetch", "gold"], "ValueError: Nothing is called 'gold'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, says, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(says) and error.count("\n") == 1
