"""The end of a run: its table, ``results.json`` and ``report.png``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import mean, median
from typing import Any

from sslfast._core.extras import require

RESULTS = "results.json"
PLOT = "report.png"
GAIN_OVER_UNTRAINED = 25.0
GAIN_OVER_RAW = 5.0


def summarise(results: dict[str, Any]) -> dict[str, float]:
    """Means over seeds; accuracies in percent."""
    runs = results["runs"]
    return {
        "raw": 100 * results["raw_pixels_knn"],
        "untrained": 100 * mean(run["untrained_knn"] for run in runs),
        "trained": 100 * mean(run["trained_knn"] for run in runs),
        "untrained_rankme": mean(run["untrained_rankme"] for run in runs),
        "trained_rankme": mean(run["trained_rankme"] for run in runs),
        "first_loss": mean(run["losses"][0] for run in runs),
        "last_loss": mean(run["losses"][-1] for run in runs),
        "images_per_s": mean(images_per_second(results, run) for run in runs),
    }


def images_per_second(results: dict[str, Any], run: dict[str, Any]) -> float:
    """Source images a second (each gives all its views), by the median step."""
    return float(results["config"]["batch_size"] / median(run["seconds"]))


def write_results(output: Path, results: dict[str, Any]) -> Path:
    path = output / RESULTS
    temporary = output / f".{RESULTS}.tmp"
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def print_table(results: dict[str, Any]) -> None:
    """The run in two tables: what was learned, and what the fused loss cost against eager."""
    console = require("rich.console", "the report").Console()
    console.print(_learning_table(results))
    console.print(_loss_table(results))


def _learning_table(results: dict[str, Any]) -> Any:
    summary, evaluation = summarise(results), results["evaluation"]
    seeds = [run["seed"] for run in results["runs"]]
    table = require("rich.table", "the report").Table(
        title=f"SimCLR, {results['config']['steps']} steps of {results['config']['batch_size']} "
        f"images, mean of seeds {', '.join(map(str, seeds))}"
    )
    table.add_column("held-out images")
    table.add_column(f"kNN top-1 (k={evaluation['k']})", justify="right")
    table.add_column("RankMe", justify="right")
    table.add_row("raw pixels", f"{summary['raw']:.1f} %", "")
    untrained, trained = summary["untrained"], summary["trained"]
    rank = f"{summary['untrained_rankme']:.1f}"
    table.add_row("untrained encoder", f"{untrained:.1f} %", rank)
    each = ", ".join(f"{100 * run['trained_knn']:.1f}" for run in results["runs"])
    rank = f"{summary['trained_rankme']:.1f}"
    table.add_row(f"trained encoder ({each})", f"[bold]{trained:.1f} %[/bold]", rank)
    if (ceiling := results["supervised"]) is not None:
        row = (f"{100 * ceiling['knn']:.1f} %", f"{ceiling['rankme']:.1f}")
        table.add_row("supervised ceiling, same encoder", *row)
    table.add_section()
    table.add_row("gain over untrained", f"{trained - untrained:+.1f} points", "")
    table.add_row("gain over raw pixels", f"{trained - summary['raw']:+.1f} points", "")
    loss = f"{summary['first_loss']:.3f} to {summary['last_loss']:.3f}"
    table.add_row("loss, first to last step", loss, "")
    table.add_row("training", f"{summary['images_per_s']:.0f} images/s", "")
    return table


def _loss_table(results: dict[str, Any]) -> Any:
    comparison = results["comparison"]
    rows, dim = comparison["rows"], comparison["dim"]
    table = require("rich.table", "the report").Table(
        title=f"NT-Xent of this run, forward + backward: 2 x {rows} rows, D = {dim}, "
        f"temperature {results['config']['temperature']}"
    )
    for name in ("", "minimum", "median", "peak memory", "value"):
        table.add_column(name, justify="right" if name else "left")
    fused, eager = comparison["fused"], comparison["eager"]
    for name, timing in (("fused", fused), ("eager", eager)):
        table.add_row(
            f"{name} ({comparison['backend']})" if name == "fused" else "eager PyTorch",
            f"{timing['minimum_ms']:.2f} ms",
            f"{timing['median_ms']:.2f} ms",
            _mebibytes(timing["peak_bytes"]),
            f"{timing['value']:.5f}",
        )
    table.add_row(
        "eager / fused",
        f"[bold]{eager['minimum_ms'] / fused['minimum_ms']:.1f} x[/bold]",
        f"{eager['median_ms'] / fused['median_ms']:.1f} x",
        _ratio(eager["peak_bytes"], fused["peak_bytes"]),
        "",
    )
    return table


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.1f} MiB"


def _ratio(above: int | None, below: int | None) -> str:
    return f"{above / below:.1f} x" if above and below else "unknown"


def write_plot(output: Path, results: dict[str, Any]) -> Path:
    """Loss curve, throughput, accuracy, and the fused loss against eager, in one PNG."""
    require("matplotlib", "the plots").use("Agg")
    pyplot = require("matplotlib.pyplot", "the plots")
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    _plot_curves(axes[0], results)
    _plot_accuracy(axes[1][0], results)
    _plot_comparison(axes[1][1], results)
    path = output / PLOT
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _plot_curves(axes: Any, results: dict[str, Any]) -> None:
    batch = results["config"]["batch_size"]
    for run in results["runs"]:
        steps = range(1, len(run["losses"]) + 1)
        axes[0].plot(steps, run["losses"], label=f"seed {run['seed']}")
        axes[1].plot(steps, [batch / seconds for seconds in run["seconds"]], linewidth=0.8)
    axes[0].set(title="NT-Xent loss", xlabel="step", ylabel="loss")
    axes[0].legend()
    axes[1].set(title="training speed", xlabel="step", ylabel="images/s")
    axes[1].set_ylim(bottom=0)


def _plot_accuracy(axes: Any, results: dict[str, Any]) -> None:
    summary = summarise(results)
    bars = {"raw pixels": summary["raw"], "untrained": summary["untrained"]}
    bars["trained"] = summary["trained"]
    if results["supervised"] is not None:
        bars["supervised\nceiling"] = 100 * results["supervised"]["knn"]
    drawn = axes.bar(
        list(bars), list(bars.values()), color=["0.7", "0.7", "C0", "0.4"][: len(bars)]
    )
    axes.bar_label(drawn, fmt="%.1f")
    title = (
        f"kNN top-1 on held-out images, %\nRankMe {summary['untrained_rankme']:.0f} untrained, "
        f"{summary['trained_rankme']:.0f} trained"
    )
    axes.set(title=title, ylim=(0, 105))


def _plot_comparison(axes: Any, results: dict[str, Any]) -> None:
    comparison = results["comparison"]
    fused, eager = comparison["fused"], comparison["eager"]
    ratios = {"time\n(minimum)": eager["minimum_ms"] / fused["minimum_ms"]}
    ratios["time\n(median)"] = eager["median_ms"] / fused["median_ms"]
    if fused["peak_bytes"] and eager["peak_bytes"]:
        ratios["peak\nmemory"] = eager["peak_bytes"] / fused["peak_bytes"]
    drawn = axes.bar(list(ratios), list(ratios.values()), color="C2")
    axes.bar_label(drawn, fmt="%.1f x")
    axes.axhline(1.0, color="0.3", linewidth=0.8)
    title = f"eager / fused, 2 x {comparison['rows']} rows, D = {comparison['dim']}"
    axes.set(title=title, ylabel="times as much")
    axes.margins(y=0.15)
