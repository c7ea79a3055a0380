"""`trinity-rec diagnose`: what is wrong with a run, from its logs and its YAML, by one list of rules."""
