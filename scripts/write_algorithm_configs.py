"""Write configs/algorithms/<preset>.yaml, one a row of the preset table, as `trinity-rec show` prints it."""

from pathlib import Path

from trinity_rec.commands.catalogue import section_text
from trinity_rec.presets import PRESETS

CONFIGS = Path(__file__).parents[1] / "configs/algorithms"

if __name__ == "__main__":
    CONFIGS.mkdir(parents=True, exist_ok=True)
    for name, preset in PRESETS.items():
        (CONFIGS / f"{name}.yaml").write_text(section_text(preset), encoding="utf-8")
