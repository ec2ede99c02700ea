"""``sslfast pretrain``: options, what they mean together, and the exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from sslfast._core.extras import require
from sslfast.data import DigitsRecipe, ImageSet, build_pipeline, make_digits, read_images
from sslfast.pretrain.config import (
    LOSSES,
    METHODS,
    VIEWS,
    Config,
    config_from_dict,
    refuse_difference,
)
from sslfast.pretrain.job import InterruptedTrainingError, Job, run_job
from sslfast.pretrain.loop import Run
from sslfast.pretrain.report import print_table, write_plot, write_results

INTERRUPTED = 130
CONFIG = "config.json"
# Imported before the work starts: an absent one must not show after five minutes.
EXTRAS = ("rich", "tqdm", "PIL", "matplotlib.pyplot")
DIGITS = "digits-jpeg"
DEFAULT_OUTPUT = Path("runs/simclr-digits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sslfast pretrain``; None, the default of a configuration's field: not given."""
    default = Config()
    add = parser.add_argument
    add("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the run (%(default)s)")
    add("--data", type=Path, help="folder with train/<class>/<image> and held_out/<class>/<image>; "
        f"left out, handwritten digits are rendered to {DIGITS} beside the output")  # fmt: skip
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the run in --output")
    start.add_argument("--overwrite", action="store_true", help="delete the run in --output first")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"steps per seed ({default.steps})")
    length.add_argument("--epochs", type=int, help="passes over the training images per seed")
    length.add_argument("--minutes", type=float, help="training time of all seeds together; turned "
        "into steps by timing a few of them here")  # fmt: skip
    add("--batch-size", type=int, help=f"images per step ({default.batch_size})")
    add("--temperature", type=float, help=f"of NT-Xent ({default.temperature})")
    add("--lr", type=float, help=f"peak learning rate of AdamW ({default.lr})")
    add("--weight-decay", type=float, help=f"of AdamW ({default.weight_decay})")
    add("--seed", type=int, help=f"first seed ({default.seed})")
    add("--seeds", type=int, help=f"how many seeds to train and average ({default.seeds})")
    add("--width", type=int, help=f"channels after the first convolution ({default.width})")
    add("--method", choices=METHODS, help=f"({default.method})")
    add("--loss", choices=LOSSES, help=f"fused kernels or plain PyTorch ({default.loss})")
    add("--ceiling-steps", type=int, help="steps of the supervised ceiling, 0 for none "
        f"({default.ceiling_steps})")  # fmt: skip
    add("--checkpoint-every", type=int, default=10, help="steps between checkpoints (%(default)s)")
    add("--threads", type=int, help="threads of torch (all cores)")


def run(args: argparse.Namespace) -> int:
    """Run the job; 0, or 130 after Ctrl-C (the checkpoint is written). ValueError for bad input."""
    for name in ("checkpoint_every", "threads", "epochs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"argument {_flag(name)} must be at least 1, got {value}")
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise ValueError(f"argument --minutes must be positive and finite, got {args.minutes}")
    given = _given(args)
    replace(Config(), **given)
    for extra in EXTRAS:
        require(extra, "sslfast pretrain")
    _prepare_output(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    started = time.perf_counter()
    try:
        job = _build_job(args, given)
        results = run_job(job)
    except (InterruptedTrainingError, KeyboardInterrupt) as stopped:
        print(f"\n{str(stopped) or 'stopped'}; {_what_next(args)}", file=sys.stderr)
        return INTERRUPTED
    results["total_seconds"] = time.perf_counter() - started
    print_table(results)
    written = [write_results(job.output, results), write_plot(job.output, results)]
    print(f"wrote {' and '.join(map(str, written))} after {results['total_seconds']:.0f} s")
    return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that were typed."""
    names = (field.name for field in fields(Config) if hasattr(args, field.name))
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _what_next(args: argparse.Namespace) -> str:
    if not (args.output / CONFIG).is_file():
        return "nothing was trained yet"
    data = f" --data {args.data}" if args.data else ""
    return f"resume with: sslfast pretrain --output {args.output}{data} --resume"


def _prepare_output(args: argparse.Namespace) -> None:
    output: Path = args.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"argument --output: {output} is not a folder")
    stored = (output / CONFIG).is_file()
    if args.resume and not stored:
        raise ValueError(f"argument --resume: {output} holds no run to go on with")
    if stored and args.overwrite:
        for path in (*output.glob("seed-*"), output / CONFIG):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif stored and not args.resume:
        raise ValueError(
            f"argument --output: {output} holds a run already; add --resume to go on with it, "
            "--overwrite to delete it, or name another folder"
        )


def _build_job(args: argparse.Namespace, given: dict[str, Any]) -> Job:
    method = given.get("method", Config().method)
    gallery, held_out = _read_data(args, method)
    given = {**given, "data_digest": gallery.digest}
    if args.epochs is not None:
        batch_size = given.get("batch_size", Config().batch_size)
        given["steps"] = args.epochs * max(1, len(gallery) // batch_size)
    path: Path = args.output / CONFIG
    if args.resume:
        config = _stored_config(path, given)
    else:
        config = replace(Config(), **given)
        if args.minutes is not None:
            config = replace(config, steps=_steps_in(args.minutes, config, gallery))
        args.output.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(config.as_dict(), indent=1) + "\n")
        os.replace(temporary, path)
    return Job(config, args.output, gallery, held_out, args.checkpoint_every)


def _stored_config(path: Path, given: dict[str, Any]) -> Config:
    try:
        config = config_from_dict(json.loads(path.read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    stored = config.as_dict()
    refuse_difference({name: stored[name] for name in given}, given, str(path.parent))
    return config


def _read_data(args: argparse.Namespace, method: str) -> tuple[ImageSet, ImageSet]:
    root: Path | None = args.data
    if root is None:
        root = args.output.parent / DIGITS
        if not root.exists():
            print(f"rendering handwritten digits as JPEG files to {root}", flush=True)
        make_digits(root, DigitsRecipe())
    elif not root.is_dir():
        raise ValueError(
            f"argument --data: {root} is not a folder; expected train/<class>/<image> and "
            "held_out/<class>/<image> below it"
        )
    views = VIEWS[method]
    gallery, held_out = (read_images(root, split, views) for split in ("train", "held_out"))
    if gallery.classes != held_out.classes:
        raise ValueError(
            f"argument --data: {root} has the classes {', '.join(gallery.classes)} in train but "
            f"{', '.join(held_out.classes)} in held_out"
        )
    print(
        f"{len(gallery)} training and {len(held_out)} held-out images in {root}, "
        f"sha256 {gallery.digest[:12]}",
        flush=True,
    )
    return gallery, held_out


def _steps_in(minutes: float, config: Config, gallery: ImageSet) -> int:
    """Steps per seed that fit in ``minutes`` for all seeds, by the median of a few steps here."""
    trial = Run(
        config,
        config.seed,
        build_pipeline(gallery, VIEWS[config.method], config.batch_size, config.seed),
    )
    for _ in range(6):
        trial.train_step()
    step = sorted(trial.seconds[1:])[2]
    steps = max(1, round(60 * minutes / config.seeds / step))
    print(f"{1e3 * step:.0f} ms a step: {steps} steps for each of {config.seeds} seeds", flush=True)
    return steps
