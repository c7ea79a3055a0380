"""What the presets and their arguments are: as tables, sections to paste, and a JSON schema."""
