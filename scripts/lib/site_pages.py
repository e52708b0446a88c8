"""Hooks of MkDocs: pages that come from files outside of docs/, and links between them.

Links in the repository's Markdown files are those of the repository, so that they work there, too. On the site they are
rewritten to the pages that these files become.
"""

import posixpath
import re
import textwrap
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]

# Files of the repository, and the pages of the site that they become.
TEXTS = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
PROGRAMS = {f"examples/{name}.py": f"tutorials/{name}-program.md" for name in ("digits", "flights", "tuning")}
NOTEBOOKS = {
    f"examples/notebooks/{name}.ipynb": f"tutorials/{name}.md"
    for name in ("start", "dataframes", "faults", "pipelines", "many-models", "tuning")
}
PAGES = {**TEXTS, **PROGRAMS, **NOTEBOOKS}

# What docstrings have for Sphinx and for readers of the source.
_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>")
# The default that mkdocstrings derives from the signature, which is shown above, if the description has its own.
_DERIVED_DEFAULT = re.compile(
    r",\s*default:\s*<code>(?:(?!</code>).)*</code>\s*(?=\)(?:(?!</li>).)*\bDefault:)", re.DOTALL
)
_LINK = re.compile(r"(?<!!)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        if source in NOTEBOOKS:
            text = _notebook(ROOT / source)
        elif source in PROGRAMS:
            text = _program(ROOT / source)
        else:
            text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    sources = {page: source for source, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(source)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        uri = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if target == "README.md":
            uri = "index.md"
        if uri is None:
            return match[0]  # the strict build reports it
        return f"]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{match[2] or ''})"

    return _LINK.sub(rewrite, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    html = _DERIVED_DEFAULT.sub("", html)
    return _ROLE.sub(r"<code>\1</code>", html).replace("Example::", "Example:")


def _program(path: Path) -> str:
    return (
        f"# {path.stem.capitalize()}, a program\n\n`examples/{path.name}`:\n\n"
        f"```python\n{path.read_text(encoding='utf-8')}```\n"
    )


def _notebook(path: Path) -> str:
    """Return an executed notebook as Markdown; its outputs are those that were saved with it."""
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = re.sub(r"\x1b\[[0-9;]*m", "", output.text)
            elif "text/html" in output.get("data", {}):
                # A blank line or an indented one would end the block of HTML in Markdown.
                page = "\n".join(line.strip() for line in output.data["text/html"].splitlines() if line.strip())
                output.data["text/html"] = f'<div class="notebook-output">{page}</div>'
    text, _ = MarkdownExporter().from_notebook_node(book)
    note = f"The notebook `examples/notebooks/{path.name}`, as it was executed."
    title, _, rest = text.lstrip().partition("\n")
    return f"{title}\n\n{textwrap.fill(note, 110)}\n{rest}"
