"""Pretraining: repeatable, resumable bit by bit, and safe against Ctrl-C and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslfast import cli
from sslfast.data import ImageSet, build_pipeline, read_images
from sslfast.models.checkpoint import load_checkpoint, save_checkpoint
from sslfast.models.load import encoder_from_checkpoint
from sslfast.pretrain import Config, Run, StopRequest, train
from sslfast.pretrain.compare import compare_losses
from sslfast.pretrain.config import VIEWS
from sslfast.pretrain.report import RESULTS

image_module = pytest.importorskip("PIL.Image")
for extra in ("matplotlib", "rich", "tqdm"):
    pytest.importorskip(extra)

CONFIG = Config(steps=6, batch_size=8, width=4, seeds=1, ceiling_steps=2)
SMALL = ["--batch-size", "8", "--width", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise images, 24 to train with and 8 held out."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("held_out", 4)):
        for label in ("bright", "dark"):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                low = 120 if label == "bright" else 0
                pixels = rng.integers(low, low + 100, (32, 32), dtype=np.uint8)
                image_module.fromarray(pixels).save(root / split / label / f"{index}.png")
    return root


def _run(config: Config = CONFIG, seed: int = 0) -> Run:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 32, 32), generator=generator, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(20) % 2, ("a", "b"), "digest")
    return Run(config, seed, build_pipeline(data, VIEWS["simclr"], config.batch_size, seed))


class _StopAfter(StopRequest):
    """Asks for a stop once so many steps are reported."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def report(self, run: Run) -> None:
        self.requested = run.step >= self.steps


def _assert_same(one: Run, two: Run) -> None:
    assert one.losses == two.losses
    for (name, left), right in zip(
        one.method.state_dict().items(), two.method.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right), name


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    runs = [_run(), _run(), _run(seed=1)]
    for index, run in enumerate(runs):
        assert train(run, tmp_path / f"{index}.pt", 100, StopRequest(), lambda run: None)
    _assert_same(runs[0], runs[1])
    assert runs[0].losses != runs[2].losses


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(tmp_path: Path, stop_at: int) -> None:
    whole = _run()
    train(whole, tmp_path / "whole.pt", 100, StopRequest(), lambda run: None)
    stop, path = _StopAfter(stop_at), tmp_path / "parts.pt"
    assert not train(_run(), path, 100, stop, stop.report)
    assert load_checkpoint(path)["step"] == stop_at
    torch.rand(3)
    resumed = _run()
    assert train(resumed, path, 100, StopRequest(), lambda run: None)
    _assert_same(whole, resumed)
    for left, right in zip(
        whole.optimizer.state_dict()["state"].values(),
        resumed.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_eager_loss_trains_alike() -> None:
    fused, eager = _run(), _run(replace(CONFIG, loss="eager"))
    for run in (fused, eager):
        run.train_step()
    assert fused.losses[0] == pytest.approx(eager.losses[0], rel=1e-5)


def test_a_checkpoint_of_another_configuration_or_seed_is_refused(tmp_path: Path) -> None:
    state, path = _run().state_dict(), tmp_path / "a.pt"
    save_checkpoint(path, state)
    other = _run(replace(CONFIG, temperature=0.3))
    with pytest.raises(ValueError, match=r"temperature is 0\.3 but the run in .*a\.pt has 0\.2"):
        train(other, path, 100, StopRequest(), lambda run: None)
    with pytest.raises(ValueError, match="seed is 4"):
        train(_run(seed=4), path, 100, StopRequest(), lambda run: None)


def test_unreadable_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(ValueError, match=r"a\.pt is not a file"):
        load_checkpoint(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"a\.pt is not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"a\.pt is not a checkpoint of sslfast"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {**_run().state_dict(), "step": 3})

    def half(state: object, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {})
    assert load_checkpoint(path)["step"] == 3


def test_the_encoder_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    run = _run()
    run.train_step()
    save_checkpoint(tmp_path / "a.pt", run.state_dict())
    encoder = encoder_from_checkpoint(load_checkpoint(tmp_path / "a.pt"))
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(images), run.method.encoder.eval()(images))


def test_a_loss_that_is_nan_stops_the_run() -> None:
    run = _run()
    with torch.no_grad():
        next(run.method.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 1 of seed 0"):
        run.train_step()


def test_both_forms_of_the_loss_are_timed_on_the_same_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sslfast.pretrain.compare.SECONDS", 0.0)
    views = (torch.randn(64, 32), torch.randn(64, 32))
    timings = compare_losses(views, 0.2)
    assert timings["fused"].value == pytest.approx(timings["eager"].value, rel=1e-5)
    assert {timing.rounds for timing in timings.values()} == {5}
    for timing in timings.values():
        assert 0 < timing.minimum_ms <= timing.median_ms
        assert timing.peak_bytes is not None or timing.peak_error


def test_the_whole_job_writes_its_results(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sslfast.pretrain.compare.SECONDS", 0.0)
    output = tmp_path / "run"
    line = ["pretrain", "--output", str(output), "--data", str(folder), "--epochs", "2", *SMALL]
    assert cli.main([*line, "--seeds", "2", "--ceiling-steps", "2"]) == 0
    results = json.loads((output / RESULTS).read_text())
    assert [run["seed"] for run in results["runs"]] == [0, 1]
    assert all(len(run["losses"]) == 6 for run in results["runs"])
    assert 0 <= results["supervised"]["knn"] <= 1
    assert 0 <= results["raw_pixels_knn"] <= 1
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for words in ("raw pixels", "untrained encoder", "trained encoder", "supervised", "RankMe"):
        assert words in shown
    again = ["pretrain", "--output", str(output), "--data", str(folder), "--resume"]
    assert cli.main(again) == 0
    assert json.loads((output / RESULTS).read_text())["runs"] == results["runs"]
    capsys.readouterr()
    checkpoint = str(output / "seed-1" / "checkpoint.pt")
    assert cli.main(["evaluate", checkpoint, "--data", str(folder), "--k", "5"]) == 0
    assert "step 6" in capsys.readouterr().out


def _start(output: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sslfast.cli", "pretrain", "--output", str(output)]
    command += ["--data", str(folder), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


LONG = [*SMALL, "--steps", "100000", "--seeds", "1", "--checkpoint-every", "2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_writes_the_checkpoint_and_says_how_to_resume(
    tmp_path: Path, folder: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"
    process = _start(output, folder, *LONG)
    checkpoint = output / "seed-0" / "checkpoint.pt"
    _wait_for(checkpoint, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"sslfast pretrain --output {output} --data {folder} --resume" in errors
    step = load_checkpoint(checkpoint)["step"]
    assert f"seed 0 stopped after step {step} of 100000" in errors


def test_kill_9_loses_at_most_one_checkpoint_interval(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "run"
    process = _start(output, folder, *LONG)
    checkpoint = output / "seed-0" / "checkpoint.pt"
    _wait_for(checkpoint, process)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=60)
    state = load_checkpoint(checkpoint)
    assert state["step"] % 2 == 0
    config = Config(**state["config"])
    images = _read(folder)
    whole, resumed = (
        Run(config, 0, build_pipeline(images, VIEWS["simclr"], config.batch_size, 0))
        for _ in range(2)
    )
    resumed.load_state_dict(state, str(checkpoint))
    while whole.step < state["step"] + 2:
        whole.train_step()
    for _ in range(2):
        resumed.train_step()
    _assert_same(whole, resumed)


def _read(folder: Path) -> ImageSet:
    return read_images(folder, "train", VIEWS["simclr"])


def _fails(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["pretrain", *options]) == 2
    return capsys.readouterr().err


def test_bad_input_is_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = ["--data", str(folder)], ["--output", str(tmp_path / "run")]
    missing = str(tmp_path / "nowhere")
    assert f"--data: {missing} is not a folder" in _fails(capsys, *output, "--data", missing)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    empty = ["--data", str(tmp_path / "empty")]
    assert "holds no images" in _fails(capsys, *output, *empty)
    assert "batch_size must lie between 1 and the 24" in _fails(capsys, *output, *data)
    fresh = ["--output", str(tmp_path / "fresh"), *data]
    for options, words in (
        (["--temperature", "0"], "temperature must be positive"),
        (["--lr", "nan"], "lr must be positive and finite"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--minutes", "-1"], "--minutes must be positive"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--resume"], "holds no run to go on with"),
    ):
        assert words in _fails(capsys, *fresh, *options)
    assert not (tmp_path / "fresh").exists()


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_text(json.dumps(CONFIG.as_dict()))
    options = ["--output", str(output), "--data", str(folder)]
    assert "holds a run already; add --resume" in _fails(capsys, *options)
    message = _fails(capsys, *options, "--resume", "--temperature", "0.7")
    assert "data_digest is" in message or "temperature is 0.7" in message
    digest = _read(folder).digest
    (output / "config.json").write_text(json.dumps({**CONFIG.as_dict(), "data_digest": digest}))
    message = _fails(capsys, *options, "--resume", "--temperature", "0.7")
    assert "temperature is 0.7 but the run" in message
    assert "has 0.2" in message
