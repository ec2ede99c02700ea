"""The whole job: data, training of every seed, evaluation, ceiling, comparison, report."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._backends import explain
from sslfast._core.extras import require
from sslfast.data import ImageSet, TorchPipeline, build_pipeline
from sslfast.evaluation import embed, knn_accuracy, rankme, train_supervised
from sslfast.models import SmallConvNet
from sslfast.pretrain.compare import as_json, compare_losses
from sslfast.pretrain.config import VIEWS, Config
from sslfast.pretrain.loop import Run, StopRequest, train
from sslfast.pretrain.methods import build_method

CHECKPOINT = "checkpoint.pt"


class InterruptedTrainingError(Exception):
    """Training was asked to stop; the checkpoint is written."""


@dataclass(frozen=True)
class Evaluation:
    """Settings of the kNN: Wu et al. 2018 weigh the k nearest by exp(similarity / temperature)."""

    k: int = 200
    temperature: float = 0.07


@dataclass(frozen=True)
class Job:
    config: Config
    output: Path
    gallery: ImageSet
    held_out: ImageSet
    checkpoint_every: int
    evaluation: Evaluation = Evaluation()

    def checkpoint(self, seed: int) -> Path:
        return self.output / f"seed-{seed}" / CHECKPOINT

    def knn(self, gallery: Tensor, queries: Tensor) -> float:
        return knn_accuracy(
            gallery,
            self.gallery.labels,
            queries,
            self.held_out.labels,
            k=self.evaluation.k,
            temperature=self.evaluation.temperature,
        )

    def judge(self, encoder: nn.Module) -> tuple[float, float]:
        """kNN top-1 of held-out images against the training images, and RankMe of the former."""
        queries = embed(encoder, self.held_out.images)
        return self.knn(embed(encoder, self.gallery.images), queries), rankme(queries)


@contextmanager
def progress_bar(description: str, total: int, initial: int = 0) -> Iterator[Any]:
    bar = require("tqdm", "the progress bar").tqdm(
        desc=description, total=total, initial=initial, unit="step", dynamic_ncols=True
    )
    try:
        yield bar
    finally:
        bar.close()


def run_job(job: Job) -> dict[str, Any]:
    """Do it all and return the content of ``results.json``.

    Raises:
        InterruptedTrainingError: SIGINT or SIGTERM came while a seed trained.
    """
    raw = job.knn(*(part.images.flatten(1).float() for part in (job.gallery, job.held_out)))
    config, runs = job.config, []
    for seed in range(config.seed, config.seed + config.seeds):
        run, record = _run_seed(job, seed)
        runs.append(record)
    return {
        "config": config.as_dict(),
        "views": run.method.views.as_dict(),
        "evaluation": vars(job.evaluation),
        "images": {"train": len(job.gallery), "held_out": len(job.held_out)},
        "machine": _machine(),
        "raw_pixels_knn": raw,
        "runs": runs,
        "supervised": _ceiling(job) if config.ceiling_steps else None,
        "comparison": _comparison(run),
    }


def _run_seed(job: Job, seed: int) -> tuple[Run, dict[str, Any]]:
    config = job.config
    untrained_knn, untrained_rankme = job.judge(build_method(config, seed).encoder)
    pipeline = build_pipeline(job.gallery, VIEWS[config.method], config.batch_size, seed)
    run = Run(config, seed, pipeline)
    checkpoint = job.checkpoint(seed)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop, progress_bar(f"seed {seed}", config.steps) as bar:

        def report(run: Run) -> None:
            speed = config.batch_size / run.seconds[-1]
            bar.set_postfix_str(f"loss {run.losses[-1]:.3f}, {speed:.0f} images/s", refresh=False)
            bar.update(run.step - bar.n)

        finished = train(run, checkpoint, job.checkpoint_every, stop, report)
    if not finished:
        raise InterruptedTrainingError(
            f"seed {seed} stopped after step {run.step} of {config.steps}"
        )
    trained_knn, trained_rankme = job.judge(run.method.encoder)
    record = {
        "seed": seed,
        "untrained_knn": untrained_knn,
        "untrained_rankme": untrained_rankme,
        "trained_knn": trained_knn,
        "trained_rankme": trained_rankme,
        "losses": run.losses,
        "seconds": run.seconds,
    }
    return run, record


def _ceiling(job: Job) -> dict[str, float]:
    config, views = job.config, VIEWS[job.config.method]
    torch.manual_seed(config.seed)
    encoder = SmallConvNet(views.channels, config.width)
    pipeline = TorchPipeline(job.gallery, views, config.batch_size, config.seed)
    with progress_bar("supervised ceiling", config.ceiling_steps) as bar:

        def steps() -> Iterator[int]:
            for step in range(config.ceiling_steps):
                yield step
                bar.update()

        train_supervised(
            encoder,
            encoder.out_features,
            len(job.gallery.classes),
            pipeline.next_labelled_views,
            steps(),
            config.ceiling_steps,
            lr=config.lr,
            weight_decay=config.weight_decay,
        )
    knn, rank = job.judge(encoder)
    return {"knn": knn, "rankme": rank}


def _comparison(run: Run) -> dict[str, Any]:
    """Both forms of the loss on the projections of the run's next batch."""
    with torch.no_grad():
        first, second = run.method.project(run.pipeline.next_views())
    timings = compare_losses((first, second), run.config.temperature)
    return {
        "rows": first.shape[0],
        "dim": first.shape[1],
        "backend": _chosen_backend(first),
        **as_json(timings),
    }


def _chosen_backend(rows: Tensor) -> str:
    """Name of the backend that ran ``similarity_logsumexp`` for these rows."""
    return str(explain("similarity_logsumexp", rows).runs)


def _machine() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
