"""Executing the numbered notebooks from the shell: the .py half is the source, the .ipynb is made."""

import os
import re
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from lib import profile
from lib.results import write_text

FOLDER = profile.ROOT / "notebooks"


def find(names: list[str]) -> list[Path]:
    """Sources of the notebooks named by number or stem, all of them for an empty list; ValueError for another name."""
    known, found = sorted(FOLDER.glob("[0-9][0-9]_*.py")), []
    for name in names:
        fits = [p for p in known if p.stem == Path(name).stem or p.stem[:2] == name.zfill(2)]
        if not fits:
            raise ValueError(f"No notebook {name!r}; there are {', '.join(p.stem for p in known)}.")
        found += fits
    return found or known


def run(names: list[str]) -> None:
    """`execute` the notebooks of these names. Relative paths in settings mean the folder where this was asked for."""
    folders = dict.fromkeys(("BASE_MODEL", "DATA_MIRROR", "PRIVATE_DATA"), Path.is_dir)
    for name, exists in {"TASK": Path.is_file, **folders}.items():
        path = Path(os.environ.get(name, "").strip()).expanduser()
        if os.environ.get(name) and exists(path):
            os.environ[name] = str(path.absolute())
    for source in find(names):
        execute(source)


def execute(source: Path) -> Path:
    """Run a notebook in a kernel of its own, show its progress and text, write the .ipynb beside the source (below the
    temporary folder under `fast`). One that fails raises RuntimeError and leaves its previous .ipynb as it was."""
    notebook = jupytext.read(source, config=jupytext.config.load_jupytext_config(str(source)))
    print(f"\n=== {source.stem} (profile {profile.name()}) ===", flush=True)
    # a kernel warns of its unencrypted loopback sockets, which is how every local notebook runs
    options = {"extra_arguments": ["--IPKernelApp.log_level=ERROR"], "resources": {"metadata": {"path": str(FOLDER)}}}
    client = ShownClient(notebook, timeout=None, kernel_name="python3", store_widget_state=False, **options)
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(f"{source.stem} stopped: {error.ename}: {error.evalue}\n\n{error}") from None
    finally:
        client.bar.close()
    tidy(notebook)
    target = profile.kept_root() / "notebooks" / f"{source.stem}.ipynb"
    write_text(target, jupytext.writes(notebook, "ipynb") + "\n")
    print(f"=== {source.stem} done: {target} ===", flush=True)
    return target


def tidy(notebook) -> None:
    """Drop progress bars, timestamps and machine paths, so that what is committed is what a reader needs."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in list(cell.get("outputs", [])):
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            html = output.get("data", {}).get("text/html", "")
            if output.get("name") == "stderr" or re.search(r"\d+%\|", text) or "<progress" in html:
                cell.outputs.remove(output)
            elif "text" in output:
                output["text"] = text.replace(f"{profile.ROOT}{os.sep}", "")


class ShownClient(NotebookClient):
    """nbclient that shows on the terminal what a cell prints, and the newest line of its progress bars."""

    def __init__(self, notebook, **kwargs):
        super().__init__(notebook, **kwargs)
        cells = sum(c.cell_type == "code" for c in notebook.cells)
        self.bar = tqdm(total=cells, unit="cell", desc="cells", dynamic_ncols=True)

    def process_message(self, msg, cell, cell_index):
        kind, content = msg["msg_type"], msg["content"]
        data = content.get("data", {})
        if kind == "stream" and content["name"] == "stdout":
            self.bar.write(content["text"].rstrip("\n"))
        elif kind in ("display_data", "execute_result", "update_display_data"):
            if step := re.search(r"\[\s*(\d+/\d+ [^\]]*)\]", data.get("text/html", "")):
                self.bar.set_postfix_str(f"training {step[1]}")
            elif (text := data.get("text/plain", "")) and not re.search(r"\d+%\||^<(IPython|Figure)", text):
                self.bar.write(text)
        elif kind == "comm_msg":  # tqdm's widgets: the text right of the bar
            value = data.get("state", {}).get("value")
            if isinstance(value, str) and re.match(r"\s*\d+/\d+ \[", value):
                self.bar.set_postfix_str(value.strip())
        elif kind == "status" and content["execution_state"] == "idle" and cell.cell_type == "code":
            self.bar.update(1)
        return super().process_message(msg, cell, cell_index)
