"""The documentation site builds without a warning, its links lead somewhere, and it needs no other host to be read."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import spark_tensorflow_distributor as std
from spark_tensorflow_distributor import ml

pytest.importorskip("mkdocstrings")
pytest.importorskip("material")
pytest.importorskip("nbconvert")

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Collects what a page links to, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.loaded.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def target_of(path: Path, link: str, site: Path) -> tuple[Path, str]:
    parts = urlsplit(link)
    base = site if parts.path.startswith("/") else path.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path.resolve()
    return (target / "index.html" if target.is_dir() else target), unquote(parts.fragment)


def test_internal_links_and_files_exist(site, pages):
    known = {path.resolve(): page for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target, anchor = target_of(path, link, site)
            if not target.exists() or (anchor and target in known and anchor not in known[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert len(pages) > 40


def test_nothing_is_loaded_from_other_hosts(site, pages):
    loaded = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert loaded == set()
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", path.read_text(encoding="utf-8")), path


def test_the_reference_wraps_signatures_and_gives_each_default_once(site):
    text = (site / "reference" / "worker" / "index.html").read_text(encoding="utf-8")
    signature = re.sub(r"<[^>]+>", "", text.partition('<span class="nf">to_tf</span>')[2].partition("</pre>")[0])
    assert "\n    batch_size: int,\n" in signature
    assert len(re.findall(r"<b><code>fill_value</code></b>", text)) == 2
    for item in re.findall(r"<li class=\"doc-section-item.*?</li>", text, re.DOTALL):
        assert not (re.search(r", default:\s", item) and "Default:" in item), item


def test_code_says_its_language_so_that_long_lines_wrap(site):
    text = (site / "data" / "index.html").read_text(encoding="utf-8")
    assert '<div class="language-python highlight">' in text
    assert ".language-python pre" in (site / "assets" / "site.css").read_text(encoding="utf-8")


def test_every_public_name_has_a_place_in_the_reference_and_an_example():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")]
    for name in [*std.__all__, *(f"ml.{name}" for name in ml.__all__)]:
        entry = f"::: spark_tensorflow_distributor.{name}\n"
        found = [text for text in texts if entry in text]
        assert len(found) == 1, name
        own_example = found[0].partition(entry)[2].partition(":::")[0]
        assert "```python" in (found[0] if found[0].startswith("# Exceptions") else own_example), name


def test_the_python_code_of_the_documentation_compiles():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for code in re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            if "*, batch_size, weight_column=None" not in code:  # a signature
                compile(code, str(path), "exec")
