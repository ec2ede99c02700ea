"""``sslfast evaluate CHECKPOINT``: kNN accuracy and RankMe of a pretrained encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from sslfast._core.extras import require
from sslfast.data import read_images
from sslfast.data.recipes import view_recipe_from_dict
from sslfast.evaluation import embed, knn_accuracy, rankme
from sslfast.models.checkpoint import load_checkpoint
from sslfast.models.load import encoder_from_checkpoint

DEFAULT_DATA = Path("runs/digits-jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sslfast evaluate``."""
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint.pt of a run")
    add("--data", type=Path, default=DEFAULT_DATA, help="folder with train/<class>/<image> and "
        "held_out/<class>/<image> (%(default)s)")  # fmt: skip
    add("--k", type=int, default=200, help="nearest neighbours that vote (%(default)s)")
    add("--temperature", type=float, default=0.07, help="of the vote's weights (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the table; ValueError for a bad checkpoint, folder or option."""
    state = load_checkpoint(args.checkpoint)
    if not args.data.is_dir():
        raise ValueError(f"argument --data: {args.data} is not a folder")
    views = view_recipe_from_dict(state["views"])
    gallery, held_out = (read_images(args.data, split, views) for split in ("train", "held_out"))
    encoder = encoder_from_checkpoint(state)
    keys, queries = embed(encoder, gallery.images), embed(encoder, held_out.images)
    settings = {"k": args.k, "temperature": args.temperature}
    top1 = knn_accuracy(keys, gallery.labels, queries, held_out.labels, **settings)
    raw = knn_accuracy(
        gallery.images.flatten(1).float(),
        gallery.labels,
        held_out.images.flatten(1).float(),
        held_out.labels,
        **settings,
    )
    print(f"{args.checkpoint}, step {state['step']}")
    table = require("rich.table", "the report").Table()
    for name in ("held-out images", f"kNN top-1 (k={args.k})", "RankMe"):
        table.add_column(name)
    table.add_row("raw pixels", f"{100 * raw:.1f} %", "")
    table.add_row("encoder", f"{100 * top1:.1f} %", f"{rankme(queries):.1f}")
    require("rich.console", "the report").Console().print(table)
    return 0
