"""What a page of one file holds, and what it does in a real Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

HOSTILE = "</script><script>alert(1)</script><img src=//x.test/y onerror=alert(2)> \"q\" 's' &lt;"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What a browser asks for, or goes to after a click.
ADDRESSES = ("action", "background", "data", "href", "ping", "poster", "src", "srcset")


class Page(HTMLParser):
    """Parsed as a browser does: text, elements by name, scripts, addresses, titles of elements."""

    def __init__(self, page: bytes):
        super().__init__()
        self.text, self.scripts, self.elements = "", "", []
        self.addresses, self.titles = [], []
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [(tag, value) for name, value in attributes if name in ADDRESSES]
        self.titles += [value for name, value in attributes if name == "title"]

    def handle_data(self, data):
        if self.elements[-1:] == ["script"] and self.cdata_elem == "script":
            self.scripts += data
        elif self.cdata_elem is None:
            self.text += data


@contextmanager
def in_chromium(path: Path) -> Iterator:
    """The page opened; it must ask for nothing else and have no problem as long as it is open."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}; apt-get install chromium")
    requests, problems = [], []
    with playwright.sync_playwright() as driver:
        # Whoever is root has no sandbox.
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(f"{line.type}: {line.text}"))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        yield page
        chromium.close()
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert problems == []
