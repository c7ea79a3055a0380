"""`trinity-rec paper`: list the paper's experiments, write their YAMLs, run them on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trinity_rec.paper.experiments import EXPERIMENTS, Experiment, select
from trinity_rec.terminal import UsageError, print_json, print_table, stderr, stdout

app = typer.Typer(
    help="The experiments of the paper on GPUs: GSM8K, ToolACE, Guru-Math and MATH.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def complete_experiment(incomplete: str) -> list[str]:
    return [name for name in EXPERIMENTS if name.startswith(incomplete)]


_NAMES = typer.Argument(
    help="Experiments as `trinity-rec paper list` names them; patterns too: 'gsm8k/*/rec_grpo'.",
    autocompletion=complete_experiment,
)
_TASK = typer.Option(help="gsm8k, toolace, guru_math or math.")
_SETTING = typer.Option(help="on_policy, sync_interval_20, sync_offset_10 or offline.")
_FIGURE = typer.Option(help="A figure of the paper: 3 to 7, 9 to 11.")
_SEED = typer.Option("--seed", help="Of the rollouts; may be given several times.")
_SET = typer.Option("--set", help="A setting of Trinity's YAML, as model.model_path=/models/qwen; may be repeated.")


@app.command("list", epilog="Example: trinity-rec paper list --figure 3")
def list_command(
    names: Annotated[list[str] | None, _NAMES] = None,
    task: Annotated[str | None, _TASK] = None,
    setting: Annotated[str | None, _SETTING] = None,
    figure: Annotated[str | None, _FIGURE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the experiments: model, setting, algorithm, and the figures of the paper that each is for."""
    chosen = select(names or (), task, setting, figure)
    if as_json:
        print_json([overview(each) for each in chosen])
        return
    if stdout().is_terminal:
        print_tasks(chosen)
        return
    table = Table("experiment", "model", "algorithm", "figures")
    for each in chosen:
        table.add_row(each.name, each.task.model, each.algorithm.title, ", ".join(each.figures))
    print_table(table)


def print_tasks(experiments: list[Experiment]) -> None:
    """Names in a column of their own under their task, never folded."""
    width = max((len(each.name) for each in experiments), default=0)
    for task in dict.fromkeys(each.task for each in experiments):
        stdout().print(f"[bold]{task.title}[/] {task.model}; figures")
        for each in experiments:
            if each.task == task:
                stdout().print(f"  [cyan]{each.name:<{width}}[/]  {', '.join(each.figures)}")


def overview(experiment: Experiment) -> dict[str, object]:
    """What `trinity-rec paper list --json` says of an experiment; `ours` are settings that the paper leaves open."""
    from trinity_rec.paper.compose import ours

    return {
        "name": experiment.name,
        "task": experiment.task.name,
        "setting": experiment.setting.name,
        "algorithm": experiment.algorithm.name,
        "preset": experiment.algorithm.preset,
        "model": experiment.task.model,
        "figures": list(experiment.figures),
        "ours": ours(experiment),
    }


@app.command("write", epilog="Example: trinity-rec paper write 'gsm8k/*/rec_grpo' --out yamls")
def write_command(
    names: Annotated[list[str] | None, _NAMES] = None,
    task: Annotated[str | None, _TASK] = None,
    setting: Annotated[str | None, _SETTING] = None,
    figure: Annotated[str | None, _FIGURE] = None,
    out: Annotated[Path, typer.Option(help="Where the YAMLs go.")] = Path("paper"),
    seeds: Annotated[list[int] | None, _SEED] = None,
    settings: Annotated[list[str] | None, _SET] = None,
) -> None:
    """Write experiments as YAMLs for `trinity run`: one that trains, and one that evaluates the checkpoints."""
    from omegaconf import OmegaConf

    from trinity_rec.paper.compose import Run, header, parsed, typed

    overrides = parsed(settings or ())
    runs = [
        Run(each, seed, None, overrides)
        for each in select(names or (), task, setting, figure)
        for seed in seeds or [42]
    ]
    if overrides:
        typed(runs[0].training(), runs[0].name)  # a wrong key is wrong in all of them
    for run in runs:
        for ending, config in (("", run.training()), ("-bench", run.bench())):
            path = out / f"{run.name}{ending}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header(run) + OmegaConf.to_yaml(config), encoding="utf-8")
            print(path)


@app.command("run", epilog="Example: trinity-rec paper run gsm8k/sync_interval_20/rec_grpo --seed 1 --seed 2")
def run_command(
    names: Annotated[list[str] | None, _NAMES] = None,
    task: Annotated[str | None, _TASK] = None,
    setting: Annotated[str | None, _SETTING] = None,
    figure: Annotated[str | None, _FIGURE] = None,
    out: Annotated[Path, typer.Option(help="Where checkpoints, logs, the table and the figures go.")] = Path(
        "runs/paper"
    ),
    seeds: Annotated[list[int] | None, _SEED] = None,
    settings: Annotated[list[str] | None, _SET] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how far each run is.")] = False,
    delete_checkpoints: Annotated[
        bool, typer.Option("--delete-checkpoints", help="Delete those of a run when all of them are evaluated.")
    ] = False,
) -> None:
    """Train experiments by `trinity run`, evaluate their checkpoints by `mode: bench`, and gather the results.

    Goes on where an earlier call stopped. Needs a running Ray cluster with the experiment's GPUs.
    """
    if not any((names, task, setting, figure)):
        raise UsageError(
            "name experiments, or choose them by --task, --setting or --figure; see `trinity-rec paper list`"
        )
    experiments = select(names or (), task, setting, figure)
    from trinity_rec.paper import run as runner
    from trinity_rec.paper.compose import Run, parsed, validated
    from trinity_rec.session import LaunchError

    err, root = stderr(), out.resolve()
    runs = [Run(each, seed, root, parsed(settings or ())) for each in experiments for seed in seeds or [42]]
    configs = [validated(run.training(), run.name) for run in runs]
    if dry_run:
        for run, config in zip(runs, configs, strict=True):
            print(f"{run.name}: {runner.progress(run, config)}")
        return
    left = [
        (run, config) for run, config in zip(runs, configs, strict=True) if not runner.progress(run, config).is_done
    ]
    for run, config in left[:1]:
        runner.require_machine(run, config)
    failed = 0
    for run, config in left:
        try:
            runner.perform(run, config, err)
        except LaunchError as error:
            failed += 1
            err.print(f"[red]error:[/] {escape(str(error))}")
    if delete_checkpoints:
        for run, config in zip(runs, configs, strict=True):
            if runner.progress(run, config).is_done:
                runner.delete_checkpoints(run)
    gather(root)
    if failed:
        raise UsageError(f"{failed} of {len(left)} runs failed; the same command goes on where they stopped")


def gather(root: Path) -> None:
    """Write `results.csv` and `figures/` from all runs in `root`, and print the table."""
    from trinity_rec.paper import results

    found = results.logged(results.found_runs(root))
    rows = [results.row(run, logs) for run, logs in found]
    results.write_csv(rows, root / "results.csv")
    figures = results.draw_figures(found, root / "figures")
    print_table(results.table(rows))
    stdout().print(f"table: {escape(str(root / 'results.csv'))}")
    for path in figures:
        stdout().print(f"figure: {escape(str(path))}")
