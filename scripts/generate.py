"""Write what follows from the tables in the code: configs/algorithms, the tables of the docs, and the JSON schema.

python scripts/generate.py            (or: make generate)
python scripts/generate.py --check    exits 1 where a file is not what it would write
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trinity_rec.declared import allowed, choices_of
from trinity_rec.diagnose.rules import markdown_table as rules_table
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import RULES, formula
from trinity_rec.presets import PRESETS
from trinity_rec.yaml.catalogue import BLOCKS, section_text
from trinity_rec.yaml.catalogue import markdown_table as presets_table
from trinity_rec.yaml.notation import readable
from trinity_rec.yaml.schema import SHIPPED, algorithm_schema

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def files() -> Iterator[tuple[Path, str]]:
    """Each generated file and what it should hold."""
    for name, preset in PRESETS.items():
        yield ROOT / f"configs/algorithms/{name}.yaml", section_text(preset)
    yield SHIPPED, json.dumps(algorithm_schema(), indent=1, ensure_ascii=False) + "\n"
    yield from (
        page("metrics.md", "rules", rules_table()),
        page("presets.md", "presets", presets_table()),
        page("algorithms.md", "arguments", arguments()),
    )


def page(name: str, part: str, table: str) -> tuple[Path, str]:
    """A page with what stands between `<!-- part -->` and `<!-- /part -->` written anew."""
    path = DOCS / name
    text, found = re.subn(
        rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)",
        lambda at: f"{at[1]}\n{table.strip()}\n\n{at[2]}",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"{name} has no place for its {part}: <!-- {part} -->")
    return path, text


def arguments() -> str:
    """Every argument of the loss and of the advantage, from where it is declared."""
    lines = []
    for key, block in BLOCKS.items():
        head = "| argument | default | may be | what it is | read under |"
        lines += [f"### `{key}`", "", head, "|---|---|---|---|---|"]
        for name, field in block.model_fields.items():
            rules = RULES.get(name) if block is Objective else None
            may = ", ".join(f"`{rule}`" for rule in rules) if rules else choices(field) or allowed(field)
            under = "; ".join(
                f"`{each.mode}`: {', '.join(f'`{value}`' for value in each.values)}" for each in block.read_under(name)
            )
            default = "null" if field.default is None else field.default
            lines.append(f"| `{name}` | {default} | {may} | {escaped(field.description or '')} | {under or 'always'} |")
        lines.append("")
    lines += ["### The rules", "", "| argument | value | formula |", "|---|---|---|"]
    for kind in ("clip_mode", "weight", "regularizer"):
        names = [name for name, rule in RULES[kind].items() if rule is not None]
        lines += [f"| `{kind}` | `{name}` | {escaped(readable(formula(kind, name)))} |" for name in names]
    return "\n".join(lines)


def choices(field) -> str:
    return ", ".join(f"`{'null' if each is None else each}`" for each in choices_of(field) or ())


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    stale = []
    for path, text in files():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for extra in set((ROOT / "configs/algorithms").glob("*.yaml")) - {path for path, _ in files()}:
        stale.append(f"{extra.relative_to(ROOT)} has no preset")
        if "--check" not in sys.argv:
            extra.unlink()
    if stale and "--check" in sys.argv:
        raise SystemExit(f"run make generate: {', '.join(stale)}")
    print(f"{len(stale)} files written" if stale else "everything is as the code says")


if __name__ == "__main__":
    main()
