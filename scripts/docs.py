"""Makes the documentation site, build/site, of README.md, docs/, docstrings and tables of the code.

    python scripts/docs.py

README.md is the first page. A line `<!-- insert: NAME -->` of a page becomes what `INSERTS` makes,
so that a setting, a command or a finding is described in one place: where it is defined. A broken
link, a missing anchor, page or picture, an unknown name of Python, and whatever a browser would
load from a network end it with exit code 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from pydantic import BaseModel

from rfdetr.checks import MOST
from rfdetr.cli import app
from rfdetr.config import (
    VARIANTS,
    Architecture,
    ExportConfig,
    ModelConfig,
    SegmentationTrainConfig,
    TrainConfig,
)
from rfdetr.config.augment import PRESETS, STEPS, steps_of
from rfdetr.data.findings import RULES

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build"
BESIDE_DOCS = {"README": "index", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog"}
INSERT = re.compile(r"^<!-- insert: ([\w-]+) -->$", re.MULTILINE)
LOADED_BY_CSS = re.compile(r"url\(['\"]?(https?:[^)'\"]+)")
KINDS = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "None"}
RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def main() -> int:
    """Builds and checks; the exit code."""
    gather(BUILD / "docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of a version that is not taken
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if built.returncode:
        print(built.stdout, built.stderr, file=sys.stderr)
        return built.returncode
    faults = list(faults_of(BUILD / "site"))
    print(*faults, sep="\n", file=sys.stderr, end="\n" * bool(faults))
    print(f"{BUILD / 'site' / 'index.html'}: {len(faults)} faults")
    return int(bool(faults))


def gather(folder: Path) -> None:
    """Writes the pages with their tables; their links lead where they lead in the repository."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", folder)
    for name, page in BESIDE_DOCS.items():
        text = (REPOSITORY / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{page}.md").write_text(text.replace("](docs/", "]("), encoding="utf-8")
    for path in folder.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for name, page in BESIDE_DOCS.items():
            text = re.sub(rf"\]\(((?:\.\./)*){name}\.md", partial_link(path, folder, page), text)
        text = INSERT.sub(lambda found: "\n".join(INSERTS[found[1]]()), text)
        path.write_text(text, encoding="utf-8")


def partial_link(path: Path, folder: Path, page: str) -> str:
    """What a link from the page of `path` to another one of `folder` begins with."""
    return f"]({os.path.relpath(folder / page, path.parent)}.md"


def fields(config: type[BaseModel], but: type[BaseModel] | None = None) -> Iterator[str]:
    """A row for each field of `config` that `but` has not, from its JSON schema."""
    yield from ("| field | type and range | default | meaning |", "|---|---|---|---|")
    schema = config.model_json_schema()
    for name, field in schema["properties"].items():
        if but is None or name not in but.model_fields:
            default = "needed" if name in schema.get("required", ()) else code(field.get("default"))
            meaning = " ".join(field.get("description", "").split())
            yield row(f"`{name}`", kind(field), default, meaning)


def kind(schema: dict[str, Any]) -> str:
    """The type of a JSON schema in the words of Python, with its range."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(choice) for choice in schema["anyOf"]))
    if values := schema.get("enum") or [schema[key] for key in ("const",) if key in schema]:
        return ", ".join(code(value) for value in values)
    if (name := schema.get("type")) == "array":
        parts = schema.get("prefixItems") or [schema.get("items", {})]
        return f"list of {' and '.join(kind(part) for part in parts)}"
    limits = [
        f"{sign} {schema[key]:g}"
        for key, sign in RANGES.items()
        if key in schema and schema[key] != MOST
    ]
    return " ".join([KINDS.get(str(name), "dict" if name else "any"), ", ".join(limits)]).strip()


def variants() -> Iterator[str]:
    """The models, by the fields that differ."""
    models = {name: config() for name, config in VARIANTS.items()}
    names = [
        name
        for name in Architecture.model_fields
        if len({str(getattr(model, name)) for model in models.values()}) > 1
    ]
    yield row("model", *(f"`{name}`" for name in names))
    yield "|---" * (1 + len(names)) + "|"
    for name, model in models.items():
        yield row(f"`{name}`", *(code(getattr(model, field)) for field in names))


def commands() -> Iterator[str]:
    """The help of every verb."""
    for verb in (name for name in app if not name.startswith("-")):
        text = app[verb].generate_docs(output_format="markdown", heading_level=2)
        head = f"## {verb}\n\n```console\n"
        yield f"## rfdetr {verb}\n\n```text\nrfdetr {text.removeprefix(head)}"


def findings() -> Iterator[str]:
    """What `rfdetr check` looks for."""
    yield from ("| finding | severity | what it means | what to do |", "|---|---|---|---|")
    for name, rule in RULES.items():
        severity = f"{rule.severity}; {rule.checked} in `check`" if rule.checked else rule.severity
        yield row(f"`{name}`", severity, rule.meaning, rule.advice)


def augment_steps() -> Iterator[str]:
    """What each step does, with its parameters; the probability is that of all."""
    yield from ("| step | what it does | parameters, range, default |", "|---|---|---|")
    for name, step in STEPS.items():
        told = []
        for parameter, field in step.model_json_schema()["properties"].items():
            limits = field.get("prefixItems", [field])[0]
            least, most = (limits.get(key, limits.get(f"exclusive{key.title()}")) for key in (
                "minimum", "maximum"))  # fmt: skip
            if parameter != "p":
                within = f"{least:g} to {most:g}, {code(field['default'])}"
                told.append(f"`{parameter}`: {field['description']} ({within})")
        text = " ".join((step.__doc__ or "").split())
        yield row(f"`{name}`", text, "<br>".join(told) or "none")


def augment_presets() -> Iterator[str]:
    """The probabilities of the steps of each preset."""
    steps = {name: steps_of(name) for name in PRESETS}
    yield row("step", *(f"`{name}`" for name in steps))
    yield "|---" * (1 + len(steps)) + "|"
    for name in STEPS:
        shares = [f"{step[name]['p']:g}" if name in step else "" for step in steps.values()]
        if any(shares):
            yield row(f"`{name}`", *shares)


def code(value: Any) -> str:
    """A value as Python writes it, in a row."""
    return f"`{value if value is None or isinstance(value, bool) else json.dumps(value)}`"


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


INSERTS: dict[str, Callable[[], Iterator[str]]] = {
    "model": lambda: fields(ModelConfig),
    "train": lambda: fields(TrainConfig),
    "train-masks": lambda: fields(SegmentationTrainConfig, but=TrainConfig),
    "export": lambda: fields(ExportConfig),
    "variants": variants,
    "commands": commands,
    "findings": findings,
    "augment-steps": augment_steps,
    "augment-presets": augment_presets,
}


class Page(HTMLParser):
    """The names that a page can be entered at, its links, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.loaded += [found["src"]] if "src" in found else []
        if "href" in found and tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found["href"])
        elif "href" in found and tag == "a":
            self.links.append(found["href"])


def faults_of(site: Path) -> Iterator[str]:
    """A line for each link to nothing, and for each thing that is loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of a server
            continue
        for link in (*page.links, *page.loaded):
            where, anchor = urldefrag(unquote(link))
            outside = re.match(r"[a-z]+:|//", where)
            if outside and link in page.loaded and not link.startswith("data:"):
                yield f"{path}: loads {link}"
            target = (path.parent / where).resolve() if where else path
            if not outside and not target.exists():
                yield f"{path}: no file {link}"
            elif not outside and target in pages and anchor not in pages[target].anchors:
                yield f"{path}: no anchor {link}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        yield from (f"{path}: loads {url}" for url in LOADED_BY_CSS.findall(text))


if __name__ == "__main__":
    sys.exit(main())
