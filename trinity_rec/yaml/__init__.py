"""Presets as YAML, and what is done to a YAML that is there: read with its lines, judged, rewritten, summed up."""
