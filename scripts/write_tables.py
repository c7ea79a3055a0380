"""Write what is derived from the code: tables of the docs (presets, rules of `diagnose`), the schema that ships."""

import json
from pathlib import Path

from trinity_rec.commands.catalogue import markdown_table as presets_table
from trinity_rec.commands.schema import SHIPPED, algorithm_schema
from trinity_rec.diagnose.rules import markdown_table as rules_table

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    for page, head, table in (
        ("metrics.md", "| what you see |", rules_table()),
        ("presets.md", "## ", presets_table()),
    ):
        before, _, _ = (DOCS / page).read_text(encoding="utf-8").partition(f"\n{head}")
        (DOCS / page).write_text(f"{before}\n{table}\n", encoding="utf-8")
    SHIPPED.write_text(json.dumps(algorithm_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
