"""The paper's experiments on GPUs: `experiments` is the table, `compose` makes YAMLs of it, `run` trains and evaluates
them through Trinity, `results` gathers what came out."""
