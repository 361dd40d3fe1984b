"""Opens a page in Chromium without a window."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_BROWSERS_OWN = re.compile(r"https?://[a-z0-9.]*\.(google|googleapis|gvt1)\.com/")
"""Addresses that Chromium requests for any page."""
_ASK = """
<script>
addEventListener("load", () => {
  const pictures = [...document.images].map(picture => {
    picture.scrollIntoView();
    const place = picture.getBoundingClientRect();
    return {pixels: picture.naturalWidth * picture.naturalHeight, width: place.width, height: place.height,
            shown: picture.checkVisibility() && picture.complete};
  });
  scrollTo(0, 0);
  const found = {pictures, width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""
_FRAME = """<!doctype html><style>body {{ margin: 0 }}</style><pre id="answer"></pre>
<script>addEventListener("message", said => document.getElementById("answer").textContent = said.data);</script>
<iframe src="page.html" width="{width}" height="{height}" style="border: 0"></iframe>
"""
"""A window is at least 500 pixels wide; a frame in it can be as narrow as a phone."""


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Chromium with a profile of its own in ``folder``."""
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *_QUIET, profile, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def look_at(page: Path, folder: Path, width: int, height: int = 900, screenshot: Path | None = None) -> dict[str, Any]:
    """Open a page, and return what it shows and what it requests.

    Args:
        page: the HTML file.
        folder: for a copy of the page with a script, the browser's profile and its network log.
        width, height: pixels of the frame that shows it.
        screenshot: where to write a PNG of it.

    Returns:
        ``pictures`` (pixels, width, height, shown), ``width`` of the page's window, ``overflow`` (pixels by which the
        page is wider), ``console`` (lines) and ``requests`` (addresses other than files and data).
    """
    text = page.read_text(encoding="utf-8").replace("</body>", f"{_ASK}</body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(_FRAME.format(width=width, height=height), encoding="utf-8")
    log, address = folder / "network.json", (folder / "frame.html").as_uri()
    flags = (f"--window-size={max(width, 500)},{height}", "--enable-logging=stderr", f"--log-net-log={log}")
    done = run(folder, *flags, "--dump-dom", address)
    answer = re.search(r'<pre id="answer">(.+?)</pre>', done.stdout, re.DOTALL)
    assert answer is not None, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(answer[1]))
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = set(re.findall(r'"url":"((?!file:|data:)[^"]+)"', log.read_text(encoding="utf-8")))
    found["requests"] = sorted(address for address in asked if not _BROWSERS_OWN.match(address))
    if screenshot is not None:
        run(folder, *flags, f"--screenshot={screenshot}", address)
    return found
