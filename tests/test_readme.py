"""README's commands are those of `python -m lib`, and its links lead somewhere."""

import re

import pytest

from lib import __main__ as command
from lib import profile
from lib.report import fill

README = (profile.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"python -m lib (\w+)", README))))
def test_each_command_exists(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0


def test_each_link_to_a_section_of_the_report_finds_its_heading():
    report = (profile.ROOT / "report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", report, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    linked = re.findall(r"\(report\.md#([^)]+)\)", README)
    assert len(linked) >= 8 and set(linked) <= anchors


def test_what_the_data_cards_point_to_exists():
    assert fill.places((profile.DATA / "README.md").read_text(encoding="utf-8"), profile.ROOT) == []
