"""The report in a real browser, at the widths of a desk and of a phone: skipped where no Chromium is installed."""

from pathlib import Path

import pytest

from tests.report import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


@pytest.mark.parametrize("width", [1280, 390])
def test_every_picture_is_seen_and_nothing_is_asked_for(report: Path, tmp_path: Path, width: int) -> None:
    found = browser.look_at(report / "report.html", tmp_path, width)
    assert found["width"] == width and found["overflow"] <= 0, "wide pictures and tables scroll within themselves"
    assert len(found["pictures"]) > 10
    for picture in found["pictures"]:
        assert picture["shown"] and picture["pixels"] > 10_000 and picture["width"] > 200 and picture["height"] > 50
    assert found["console"] == [] and found["requests"] == []


def test_the_test_sees_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    pictures = f'<img src="{PIXEL}" hidden><img src="http://example.invalid/x.png">'
    wrong = f'{pictures}<div style="width: 2000px">.</div><script>console.error("no")</script>'
    page.write_text(f"<html><body>{wrong}</body></html>")
    found = browser.look_at(page, tmp_path, 390)
    assert [picture["shown"] for picture in found["pictures"]] == [False, True]
    assert found["pictures"][1]["pixels"] == 0 and found["overflow"] > 1000
    assert any("no" in line for line in found["console"]) and found["requests"] == ["http://example.invalid/x.png"]
