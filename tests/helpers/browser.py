"""Pages looked at in a real browser without a window; skipped where there is none."""

from __future__ import annotations

import functools
import html
import http.server
import json
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


def dump(url: str, folder: Path, *, width: int = 1280, dark: bool = False) -> tuple[str, str]:
    """The document of a page after its scripts, and what the console said."""
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


def measure(
    page: Path, folder: Path, *, width: int = 1280, dark: bool = False
) -> dict[str, object]:
    """Widths, colours and counts of a page, with ``console``, in a window of some width."""
    copy = folder / "measured.html"
    copy.write_text(page.read_text(encoding="utf-8") + _MEASURE, encoding="utf-8")
    dom, console = dump(copy.as_uri(), folder, width=width, dark=dark)
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-500:]
    return {**json.loads(html.unescape(found.group(1))), "console": console}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which the files of a folder are served on this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


_FRAMES = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre><script>
const pages = PAGES, width = WIDTH, found = {};
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument, root = inside.documentElement;
  const clipped = [...inside.querySelectorAll("table")].filter(table => {
    for (let box = table.parentElement; box; box = box.parentElement)
      if (box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0) return true;
    return false;
  }).map(table => table.rows[0].innerText);
  found[page] = {content: root.scrollWidth, width: root.clientWidth, clipped,
    tables: inside.querySelectorAll("table").length, maths: inside.querySelectorAll("math").length,
    coloured: inside.querySelectorAll("code span[class]").length};
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  document.getElementById("found").textContent = JSON.stringify(found);
  document.getElementById("found").className = "done";
})();
</script></body>"""


def measure_pages(
    site: Path, pages: Sequence[str], folder: Path, *, width: int
) -> tuple[dict[str, dict[str, object]], str]:
    """Widths and clipped tables of the pages of a site, and what the console said."""
    text = _FRAMES.replace("PAGES", json.dumps(list(pages))).replace("WIDTH", str(width))
    (site / "frames.html").write_text(text, encoding="utf-8")
    with served(site) as address:
        dom, console = dump(f"{address}/frames.html", folder, width=width + 40)
    found = re.search(r'<pre id="found" class="done">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-500:]
    return json.loads(html.unescape(found.group(1))), console
