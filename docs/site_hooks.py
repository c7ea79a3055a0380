"""Files outside docs/ that belong to the site, and links between them as they are written in the repository.

The README is the site's front page; the files that pages link to come along at their own paths. A page's links lead to
the same files when it is read in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FRONT = {"README.md": "index.md"}
ALONG = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"),
    *("configs/*/README.md", "examples/*/README.md", "examples/*/*.yaml"),
)


def on_files(files, config):
    for repository_path in (*FRONT, *(path.relative_to(ROOT).as_posix() for each in ALONG for path in ROOT.glob(each))):
        site_path = FRONT.get(repository_path, repository_path)
        files.append(File.generated(config, site_path, abs_src_path=str(ROOT / repository_path)))
    return files


def on_page_markdown(markdown, page, config, files):
    def on_site(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path), link[1]))
        target = FRONT.get(target, target.removeprefix("docs/"))
        return "](" + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    inside_docs = page.file.generated_by is None
    repository_path = f"docs/{page.file.src_uri}" if inside_docs else _in_repository(page.file.src_uri)
    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)", on_site, markdown)


def _in_repository(site_path):
    return next((source for source, target in FRONT.items() if target == site_path), site_path)
