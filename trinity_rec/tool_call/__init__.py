"""Tool calls in the spirit of ToolACE (arXiv 2409.00920): `calls` reads them, `reward` compares them, `workflow` runs
them through Trinity, `toolace` makes Trinity's tasks of the dataset."""
