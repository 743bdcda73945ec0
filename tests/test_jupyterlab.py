"""Notebook 03 as a student steps through it: JupyterLab in a headless Chromium, every cell run.

Needs `pip install -e ".[browser]"` and a Chromium or Chrome of the system's; skipped without.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import jupytext
import pytest

from lib import people, profile

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
MISSING = [name for name in ("jupyterlab", "playwright") if not importlib.util.find_spec(name)]
MISSING += [] if CHROMIUM else ["Chromium"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

NOTEBOOK = "03_evaluate"  # it has tables, figures, progress bars, training and the A/B widget
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else only cells in view are in the page
    "apputils-extension/notification": {"fetchNews": "false"},  # asks by a dialog otherwise
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the notebook, the server and the browser write to: never the checkout, never the home folder."""
    folder = tmp_path_factory.mktemp("lab")
    for plugin, values in SETTINGS.items():
        path = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), "utf-8")
    source = jupytext.read(profile.ROOT / "notebooks" / f"{NOTEBOOK}.py")
    (folder / "notebooks").mkdir()
    jupytext.write(source, folder / "notebooks" / f"{NOTEBOOK}.ipynb")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    """Of the notebook in a JupyterLab of its own, on a free port, with a token."""
    from jupyter_server.serverapp import list_running_servers

    places = [f"JUPYTER_{what}_DIR" for what in ("CONFIG", "DATA", "RUNTIME")] + ["JUPYTERLAB_SETTINGS_DIR"]
    places += ["JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "FAST_OUTPUT"]
    environment = os.environ | {name: str(folder / name) for name in places}
    environment |= {"PYTHONPATH": str(profile.ROOT), "RATER": "student"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    with open(folder / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=folder / "notebooks", env=environment, stdout=log, stderr=log)
    try:
        while not (running := list(list_running_servers(str(folder / "JUPYTER_RUNTIME_DIR")))):
            assert server.poll() is None, (folder / "server.log").read_text("utf-8")
            time.sleep(0.5)
        yield f"{running[0]['url']}lab/tree/{NOTEBOOK}.ipynb?token={running[0]['token']}"
    finally:
        server.terminate()
        server.wait(60)


def outputs(page, kind):
    """The outputs of JupyterLab's own kinds: error, stderr, stdout."""
    return page.locator(f"[data-mime-type='application/vnd.jupyter.{kind}']")


def test_all_cells_run_show_progress_and_a_click_on_the_blind_comparison_is_recorded(address, folder):
    """After "Run All Cells" came to the last cell or to an error."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(address)
        idle = page.get_by_text("Python 3 (ipykernel) | Idle").first  # the status bar: "No Kernel" at first
        idle.wait_for()
        for item in ("Run", "Run All Cells"):
            page.get_by_role("menuitem", name=item, exact=True).click()
        ran = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]"))
        ran.or_(outputs(page, "error")).first.wait_for(timeout=400_000)
        idle.wait_for()
        assert outputs(page, "error").all_inner_texts() == outputs(page, "stderr").all_inner_texts() == []
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        assert prompts == [f"[{i + 1}]:" for i in range(len(prompts))]
        said = "\n".join(outputs(page, "stdout").all_inner_texts())
        assert re.search(r"^debian, full, bits_per_byte: .* difference [+-]\d", said, re.MULTILINE)
        assert page.locator(".jp-OutputArea-output .widget-hprogress .progress-bar").count() > 0
        assert "IProgress" not in page.locator(".jp-Notebook").inner_text()
        assert page.get_by_text("Error displaying widget").count() == 0
        page.get_by_role("button", name="Left better").click()
        page.get_by_text(re.compile(r"^student: 1 of \d+ rated$")).wait_for()
        (row,) = people.read_lines(folder / "FAST_OUTPUT" / "data" / "runs" / "ratings-debian.jsonl")
        assert row["rater"] == "student" and row["choice"] == row["left"]
        browser.close()
