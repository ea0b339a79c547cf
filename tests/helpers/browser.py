"""Pages looked at in a real browser without a window; skipped where there is none."""

from __future__ import annotations

import functools
import html
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_MEASURE = """<script>
addEventListener("load", () => {
  const style = getComputedStyle(document.body), root = document.documentElement;
  const found = {width: root.clientWidth, content: root.scrollWidth,
    paper: style.backgroundColor, ink: style.color,
    svgs: document.querySelectorAll("svg").length,
    tables: document.querySelectorAll("table").length};
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def browser() -> str:
    """The program, or a skipped test."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")


def options(folder: Path, width: int) -> list[str]:
    """The program and what it is always told."""
    return [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
    ]


def said(errors: str) -> str:
    """What the console of pages said."""
    return "\n".join(line for line in errors.splitlines() if "CONSOLE" in line)


def measure(
    page: Path, folder: Path, *, width: int = 1280, dark: bool = False
) -> dict[str, object]:
    """Widths, colours and counts of a page, with ``console``, in a window of some width."""
    copy = folder / "measured.html"
    copy.write_text(page.read_text(encoding="utf-8") + _MEASURE, encoding="utf-8")
    command = [
        *options(folder, width),
        "--virtual-time-budget=20000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    return {**json.loads(html.unescape(found.group(1))), "console": said(done.stderr)}


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what a page posts."""

    posted: queue.SimpleQueue[str]

    def do_POST(self) -> None:
        self.posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, queue.SimpleQueue[str]]]:
    """The address under which the files of a folder are served on this machine; what is posted."""
    posted: queue.SimpleQueue[str] = queue.SimpleQueue()
    handler = functools.partial(
        type("Handler", (_Handler,), {"posted": posted}), directory=str(folder)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", posted
        finally:
            server.shutdown()


_FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
const pages = PAGES, width = WIDTH, found = {};
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument, root = inside.documentElement;
  const clipped = [];
  for (const table of inside.querySelectorAll("table"))
    for (let box = table.parentElement; box; box = box.parentElement)
      if (box.scrollWidth > box.clientWidth + 4 && box.clientWidth > 0)
        clipped.push(`${table.rows[0].innerText} in ${box.tagName}.${box.className}: `
          + `${box.scrollWidth} > ${box.clientWidth}`);
  found[page] = {content: root.scrollWidth, width: root.clientWidth, clipped,
    tables: inside.querySelectorAll("table").length, maths: inside.querySelectorAll("math").length,
    coloured: inside.querySelectorAll("code span[class]").length};
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script></body>"""


def measure_pages(
    site: Path, pages: Sequence[str], folder: Path, *, width: int
) -> tuple[dict[str, dict[str, object]], str]:
    """Widths and clipped tables of the pages of a site, and what the console said."""
    text = _FRAMES.replace("PAGES", json.dumps(list(pages))).replace("WIDTH", str(width))
    (site / "frames.html").write_text(text, encoding="utf-8")
    with served(site) as (address, posted):
        command = [*options(folder, width + 40), "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [*command, f"{address}/frames.html"], stderr=subprocess.PIPE, text=True
        )
        try:
            found = posted.get(timeout=240)
        finally:
            process.terminate()
            errors = process.communicate(timeout=60)[1]
    return json.loads(found), said(errors)
