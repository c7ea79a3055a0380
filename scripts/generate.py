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

from trinity_rec.commands.catalogue import section_text
from trinity_rec.commands.schema import algorithm_schema
from trinity_rec.declared import allowed, choices_of
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import RULES, formula
from trinity_rec.presets import FAMILIES, PRESETS
from trinity_rec.shaping import Shaping

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "trinity_rec/schema.json"


def files() -> Iterator[tuple[Path, str]]:
    """Each generated file and what it should hold."""
    for name, preset in PRESETS.items():
        yield ROOT / f"configs/algorithms/{name}.yaml", section_text(preset)
    yield SCHEMA, json.dumps(algorithm_schema(), indent=1, ensure_ascii=False) + "\n"
    page = ROOT / "docs/algorithms.md"
    yield page, filled(page.read_text(encoding="utf-8"), {"presets": presets(), "arguments": arguments()})


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with what stands between `<!-- name -->` and `<!-- /name -->` written anew."""
    for name, table in tables.items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda at, t=table: f"{at[1]}\n{t}\n{at[2]}", text, flags=re.S
        )
        if found != 1:
            raise SystemExit(f"no place for the table of {name}")
    return text


def presets() -> str:
    """The presets by family."""
    lines = []
    for family, what in FAMILIES.items():
        rows = [
            f"| `{each.name}` | {each.title} | {escaped(each.gradient)} | {each.when} |"
            for each in PRESETS.values()
            if each.family == family
        ]
        heads = ["| preset | name | gradient of a token, averaged over the batch | when |", "|---|---|---|---|"]
        lines += [f"### {family}: {what}", "", *heads, *rows, ""]
    return "\n".join(lines)


def arguments() -> str:
    """Every argument of the loss and of the advantage, from where it is declared."""
    lines = []
    for key, block in (("policy_loss_fn_args", Objective), ("advantage_fn_args", Shaping)):
        lines += [
            f"### `{key}`",
            "",
            "| argument | default | may be | what it is | read under |",
            "|---|---|---|---|---|",
        ]
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
        lines += [f"| `{kind}` | `{name}` | {escaped(formula(kind, name))} |" for name in RULES[kind] if name != "none"]
    return "\n".join([*lines, ""])


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
