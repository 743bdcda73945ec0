"""Executing the numbered notebooks from the shell: the .py half is the source, the .ipynb is made."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from lib import profile  # and not lib.results, whose libraries would hold 0.2 GB beside every kernel
from lib.profile import write_bytes

FOLDER = profile.ROOT / "notebooks"
METADATA = {"jupytext", "kernelspec", "language_info", "lines_to_next_cell", "tags"}  # of notebooks and cells, kept


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
    """Say what these notebooks replace, and `execute` them."""
    sources = find(names)
    if profile.kept_root() == profile.ROOT and os.environ.get("RESULTS") != "stored":
        print("Each notebook, when it ends, replaces its results, figures and outputs; the committed ones come back by")
        print("`git checkout data/results figures notebooks/*.ipynb`.")
    for source in sources:
        execute(source)


def execute(source: Path) -> Path:
    """Run a notebook in a kernel of its own, show its progress and text, the last cell's at the end, and write the
    .ipynb beside the source (below the temporary folder under `fast`). The previous one stays where it fails, which
    raises RuntimeError, or is interrupted: KeyboardInterrupt of a sentence and the signal's number."""
    notebook = jupytext.read(source, config=jupytext.config.load_jupytext_config(str(source)))
    print(f"\n=== {source.stem} (profile {profile.name()}) ===", flush=True)
    # a kernel warns of its unencrypted loopback sockets, which is how every local notebook runs
    options = {"extra_arguments": ["--IPKernelApp.log_level=ERROR"], "resources": {"metadata": {"path": str(FOLDER)}}}
    client = ShownClient(notebook, timeout=None, kernel_name="python3", store_widget_state=False, **options)
    try:
        client.execute()
    except CellExecutionError as error:
        text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # without colours
        write_bytes(path := profile.output_root() / "build" / f"{source.stem}.traceback.txt", text.encode())
        above = [line for line in text.splitlines() if line.startswith(("---->", "Cell In"))][-2:]
        said = "\n".join([f"{source.stem} stopped: {error.ename}: {error.evalue}", *above, f"The traceback: {path}"])
        raise RuntimeError(said) from None
    except (KeyboardInterrupt, asyncio.CancelledError, DeadKernelError) as error:
        if isinstance(error, DeadKernelError) and not client.stopped:
            raise RuntimeError(f"{source.stem} stopped: its kernel died, as it does when memory runs out.") from None
        said = f"{source.stem} was interrupted; its results, figures and outputs are as they were. "
        said += "The same command goes on from what is finished, a training from its last checkpoint."
        raise KeyboardInterrupt(said, client.stopped or signal.SIGINT) from None
    finally:
        client.bar.close()
    target = profile.kept_root() / "notebooks" / f"{source.stem}.ipynb"
    write_bytes(target, jupytext.writes(notebook, "ipynb").encode())
    tidy([target])
    print(f"=== {source.stem} done: {target} ===", flush=True)
    print("".join(o.get("text", "") for o in client.last.outputs), end="", flush=True)
    return target


def tidy(files: Iterable[Path]) -> None:
    """Drop from .ipynb files progress bars, dead widgets, timestamps, machine paths and editors' metadata (GitHub shows
    no notebook that has Colab's `widgets`): what is committed is what a reader needs."""
    for path in files:
        notebook = nbformat.read(path, as_version=4)
        for part in (notebook, *notebook.cells):
            for name in set(part.metadata) - METADATA:
                del part.metadata[name]
        for cell in notebook.cells:
            for output in list(cell.get("outputs", [])):
                data = output.get("data", {})
                text, html = output.get("text", "") or data.get("text/plain", ""), data.get("text/html", "")
                gone = output.get("name") == "stderr" or re.search(r"\d+%\|", text) or "<progress" in html
                if gone or "application/vnd.jupyter.widget-view+json" in data:
                    cell.outputs.remove(output)
                elif "text" in output:
                    output["text"] = text.replace(f"{profile.ROOT}{os.sep}", "")
        write_bytes(path, (nbformat.writes(notebook) + "\n").encode())


class ShownClient(NotebookClient):
    """nbclient that shows on the terminal what the cells but the last print, and the newest line of their progress
    bars. SIGINT or SIGTERM ends it and is noted in `stopped`."""

    def __init__(self, notebook, **kwargs):
        super().__init__(notebook, **kwargs)
        code = [c for c in notebook.cells if c.cell_type == "code"]
        self.bar = tqdm(total=len(code), unit="cell", desc="cells", dynamic_ncols=True)
        self.last, self.stopped = code[-1], 0

    async def async_start_new_kernel(self, **kwargs):
        """Take the signals over: nbclient's own handlers end in an AssertionError."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int) -> None:
            self.stopped, self.shutdown_kernel = number, "immediate"
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError):  # Windows raises KeyboardInterrupt; a thread gets no signals
                loop.add_signal_handler(number, stop, number)
        await super().async_start_new_kernel(**kwargs)

    def process_message(self, msg, cell, cell_index):
        kind, content = msg["msg_type"], msg["content"]
        data = content.get("data", {})
        if kind == "stream" and content["name"] == "stdout" and cell is not self.last:
            self.bar.write(content["text"].rstrip("\n"))
        elif kind in ("display_data", "execute_result", "update_display_data"):
            if step := re.search(r"\[\s*\d+/\d+ [^\]]*\]", data.get("text/html", "")):
                self.bar.set_postfix_str(f"training {step[0].strip('[] ')}")
            elif (text := data.get("text/plain", "")) and not re.search(r"\d+%\||^(<IPython|<Figure|[HV]Box)", text):
                self.bar.write(text)
        elif kind == "comm_msg":  # tqdm's widgets: the text right of the bar
            value = data.get("state", {}).get("value")
            if isinstance(value, str) and re.match(r"\s*\d+/\d+ \[", value):
                self.bar.set_postfix_str(value.strip())
        elif kind == "status" and content["execution_state"] == "idle" and cell.cell_type == "code":
            self.bar.update(1)
        return super().process_message(msg, cell, cell_index)
