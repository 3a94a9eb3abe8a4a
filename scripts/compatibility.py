"""The generated parts of docs/compatibility.md: what becomes of every published keyword and name,
and the verdict of every code block of the page.

    python scripts/compatibility.py            print them
    python scripts/compatibility.py --write    put them into the page
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rfdetr import RFDETR, compat, moved
from rfdetr.config import ExportConfig, ModelConfig, SegmentationTrainConfig

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "compatibility.md"
KEYWORDS = json.loads((REPOSITORY / "tests" / "published_keywords.json").read_text())
CALLS = {  # heading, our call, the configuration whose fields it takes, the table of other fates
    "train": ("`train()`", RFDETR.train, SegmentationTrainConfig, compat.TRAIN),
    "older": ("Older keywords of `train()`", RFDETR.train, SegmentationTrainConfig, compat.TRAIN),
    "constructor": ("The constructors", RFDETR.__init__, ModelConfig, compat.MODEL),
    "from_checkpoint": ("`from_checkpoint()`", RFDETR.from_checkpoint, ModelConfig, compat.MODEL),
    "predict": ("`predict()`", RFDETR.predict, None, {}),
    "inference": ("`inference()`", RFDETR.inference, None, {}),
    "evaluate": ("`evaluate()`", RFDETR.evaluate, None, {}),
    "export": ("`export()`", RFDETR.export, ExportConfig, compat.EXPORT),
    "export_for_roboflow": ("`export_for_roboflow()`", RFDETR.export_for_roboflow, None, {}),
}
PARTS = re.compile(r"(<!-- (\w+): generated -->\n).*?(<!-- end -->\n)", re.DOTALL)
BLOCK = re.compile(r"^#### (.+)\n\n(runs as it is|runs with a warning|does not: .+)\n\n```python\n")


class Block(NamedTuple):
    """A code block of the page, and whether it runs."""

    name: str
    verdict: str
    code: str


def fate_of(call: str, keyword: str) -> str:
    """What becomes of a keyword, in one line."""
    _, function, config, fates = CALLS[call]
    field = config.model_fields.get(keyword) if config else None
    if field is not None:
        return f"taken: {field.description}"
    if keyword in inspect.signature(function).parameters:
        return "taken"
    fate = fates.get(keyword)
    if fate is None:
        of_model = keyword in ModelConfig.model_fields
        return f"refused: {'a constructor takes it' if of_model else 'there is no such setting'}"
    if isinstance(fate, compat.Constant):
        return f"only {' or '.join(f'`{value!r}`' for value in fate.values)}: {fate.instead}"
    if isinstance(fate, compat.Harmless):
        return f"without effect, told unless `{fate.default!r}`: {fate.why}"
    if isinstance(fate, compat.Moved):
        described = ModelConfig.model_fields.get(keyword) if fate.to == "model" else None
        name = f" as `{fate.name}`" if fate.name else ""
        if fate.to == "train":
            return f"taken{name}"
        return f"goes to the {fate.to}{name}" + (f": {described.description}" if described else "")
    if isinstance(fate, compat.Translated):
        known = {repr(a): f"`{fate.field}={b!r}`" for a, b in fate.values.items() if b}
        same = ", ".join(f"`{value}` is {here}" for value, here in known.items())
        return f"{same}; no other: {fate.instead}"
    if isinstance(fate, compat.Rewritten):
        return f"taken: {fate.how}, here `{fate.field}`"
    entries = ", ".join(f"`{entry}`, `{name}` here" for entry, name in fate.fields.items())
    return f"taken: a dict of {entries}"


def keyword_tables() -> Iterator[str]:
    for call, (heading, *_) in CALLS.items():
        yield f"### {heading}\n\n| keyword | here |\n|---|---|\n"
        for keyword in KEYWORDS[call]:
            fate = " ".join(fate_of(call, keyword).split()).replace("|", "\\|")
            yield f"| `{keyword}` | {fate} |\n"
        yield "\n"


def name_table() -> Iterator[str]:
    """The published names that are not here, by what to do."""
    named: dict[str, list[str]] = {}
    for name, advice in moved.NOT_HERE.items():
        named.setdefault(advice, []).append(f"`{name}`")
    yield "| not here | what is |\n|---|---|\n"
    yield from (f"| {', '.join(names)} | {advice} |\n" for advice, names in named.items())


def blocks(page: str) -> list[Block]:
    """Every "#### name", its verdict and its code, in the order of the page."""
    found = []
    for part in re.split(r"^(?=#### )", page, flags=re.MULTILINE)[1:]:
        match = BLOCK.match(part)
        if match is None:
            raise ValueError(f"no verdict, or no code, under {part.splitlines()[0]!r}")
        found.append(Block(match[1], match[2], part[match.end() :].partition("```\n")[0]))
    return found


def block_table(page: str) -> Iterator[str]:
    found = blocks(page)
    run = sum(not block.verdict.startswith("does not") for block in found)
    yield f"{run} of {len(found)} blocks run.\n\n| block | verdict |\n|---|---|\n"
    yield from (f"| {block.name} | {block.verdict} |\n" for block in found)


def generated(page: str) -> str:
    """The page with its generated parts as they must be."""
    parts = {"keywords": keyword_tables(), "names": name_table(), "blocks": block_table(page)}
    return PARTS.sub(lambda match: match[1] + "".join(parts[match[2]]) + match[3], page)


if __name__ == "__main__":
    page = generated(PAGE.read_text())
    if "--write" in sys.argv:
        PAGE.write_text(page)
    else:
        print("".join(match[0] for match in PARTS.finditer(page)), end="")
