"""The tables of docs/performance.md, from what the other benchmarks wrote with `--json`.

    python benchmarks/report.py runs/benchmarks > runs/benchmarks/report.md

`make bench` runs them all and then this. Files that are not there are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

Row = dict[str, Any]
Ratio = dict[str, float]


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; all but the first column are numbers."""
    headings = list(headings)
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(ratio: Ratio | None) -> str:
    """Median and range of the rounds."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else ""


def objective(rows: list[Row]) -> str:
    contestants = {"basic": "ours", "full": "`full` metrics", "verl": "verl", "trl": "TRL"}
    parts = []
    for size, of_size in groupby(rows, key=lambda row: row["size"]):
        kept = list(of_size)
        shown = [name for name in contestants if any(name in row["milliseconds"] for row in kept)]
        floor = sorted(row["floor_milliseconds"] for row in kept)[len(kept) // 2]
        lines = []
        for row in kept:
            first, *others = row["presets"].split(", ")
            memory = (
                row["peak_bytes"][name] / row["peak_bytes"]["upstream"]
                for name in ("basic",)
                if name in row["peak_bytes"]
            )
            lines.append(
                [
                    f"`{first}`" + (f" and {len(others)} more" if others else ""),
                    f"{row['milliseconds']['upstream']:.2f}",
                    *(spread(row["times_faster_than_upstream"].get(name)) for name in shown),
                    spread(row["times_the_floor"].get("basic")),
                    ", ".join(f"{share:.2f}" for share in memory),
                ]
            )
        headings = ["loss of", "upstream, ms", *(contestants[name] for name in shown)]
        headings += ["times the floor", "memory"]
        parts.append(f"{size}, floor {floor:.3f} ms\n\n{table(headings, lines)}")
    return "\n\n".join(parts)


def advantage(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        each = {name: 1e6 * seconds / row["experiences"] for name, seconds in row["seconds"].items()}
        micro = f"{each['ours']:.2f}, {each['upstream']:.2f}"
        lines.append([row["setting"], f"{row['experiences']:,}", micro, spread(row["times_faster_than_upstream"])])
    return table(["setting", "experiences", "µs each: ours, upstream", "times faster"], lines)


def scale(rows: list[Row]) -> str:
    parts = []
    for (title, axis), of_sweep in groupby(rows, key=lambda row: (row["sweep"], row["axis"])):
        kept = list(of_sweep)
        names = list(kept[0]["seconds"])
        lines = [[f"{row['size']:,}", *(f"{1e3 * row['seconds'][name]:.3g}" for name in names)] for row in kept]
        parts.append(f"{title}, milliseconds\n\n{table([axis, *names], lines)}")
    return "\n\n".join(parts)


def step(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        ours, upstream = row["ours"], row["upstream"]
        lines.append(
            [
                f"{row['setting']['model']}, {row['setting']['responses']}",
                f"{ours['step_cpu']:.2f}, {upstream['step_cpu']:.2f}",
                spread(row["step_over_upstream_cpu"]),
                f"{100 * row['reference_share_cpu']['median']:.0f} %",
                f"{ours['peak_bytes'] / 1e6:.0f} MB, {upstream['peak_bytes'] / 1e6:.0f} MB",
            ]
        )
    headings = ["model, responses", "CPU seconds: ours, upstream", "ours / upstream", "the reference's share"]
    return table([*headings, "peak memory: ours, upstream"], lines)


def local_backend(rows: list[Row]) -> str:
    parts = []
    for row in rows:
        ours, trl, setting = row["ours"], row["trl"], row["setting"]
        lines = [
            [name, f"{ours[key]:.4g}", f"{trl[key]:.4g}", spread(row[f"{part}_cpu"]), spread(row[part])]
            for name, key, part in (
                ("sampling, tokens a CPU second", "sample_tokens_a_second_cpu", "sample_speed_over_trl"),
                ("training, tokens a CPU second", "train_tokens_a_second_cpu", "train_speed_over_trl"),
                ("step, CPU seconds", "step_cpu", "step_over_trl"),
            )
        ]
        title = (
            f"{setting['model']}, {setting['problems']} prompts, {setting['group']} responses each of up to "
            f"{setting['max_tokens']} tokens, threads: {setting['threads']}" + (", bf16" if row["bf16"] else "")
        )
        parts.append(f"{title}\n\n{table(['', 'ours', 'TRL', 'ours / TRL', 'by wall clock'], lines)}")
        if "loop" in row:
            loop = {name: seconds for name, seconds in row["loop"].items() if "/" not in name and name != "steps"}
            parts.append(table(["`trinity run`", "seconds a step"], [[n, f"{s:.2f}"] for n, s in loop.items()]))
    return "\n\n".join(parts)


REPORTS: dict[str, Callable[[list[Row]], str]] = {
    "objective": objective,
    "advantage": advantage,
    "scale": scale,
    "step": step,
    "local_backend": local_backend,
}


def main(
    folder: Annotated[Path, typer.Argument(help="With objective.json, step.json, step_*.json and so on.")],
) -> None:
    """Print the tables of every result in a folder."""
    for name, report in REPORTS.items():
        for path in sorted(folder.glob(f"{name}*.json")):
            found = json.loads(path.read_text())
            machine = ", ".join(f"{what} {value}" for what, value in found["machine"].items())
            print(f"## {path.stem}\n\n{machine}\n\n{report(found['rows'])}\n")


if __name__ == "__main__":
    typer.run(main)
