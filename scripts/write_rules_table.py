"""Write the table of docs/metrics.md from the rules of `trinity-rec diagnose`."""

from pathlib import Path

from trinity_rec.diagnose.rules import markdown_table

PAGE = Path(__file__).parents[1] / "docs/metrics.md"

if __name__ == "__main__":
    before, _, _ = PAGE.read_text(encoding="utf-8").partition("| what you see |")
    PAGE.write_text(before + markdown_table() + "\n", encoding="utf-8")
