"""What a run must not lose: an older run, other files, room on the disk, a readable error."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import CONFIG, SMALL, _fails, _run, folder  # noqa: F401

from sslfast import cli
from sslfast.models.checkpoint import FIELDS, load_checkpoint, previous, save_checkpoint
from sslfast.models.load import encoder_from_checkpoint
from sslfast.pretrain import StopRequest, train
from sslfast.pretrain.config import config_from_dict

Damage = Callable[[dict[str, Any]], Any]


def finished(output: Path) -> dict[str, bytes]:
    """A run as it lies there, with somebody's own files among it."""
    checkpoint = output / "seed-0" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    save_checkpoint(checkpoint, _run().state_dict())
    (output / "config.json").write_text(json.dumps(CONFIG.as_dict()))
    for name in ("results.json", "report.png", "seed-notes.txt", "seed-papers/thesis.txt",
                 "seed-1/notes.txt", "seed-2x/checkpoint.pt"):  # fmt: skip
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(name)
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "/nonexistent"],
        ["--batch-size", "100000"],
        ["--temperature", "1e-30"],
        ["--seed", str(10**20)],
        ["--seed", str((1 << 42) - 1), "--seeds", "2"],
        ["--threads", str(10**6)],
    ],
    ids=str,
)
def test_a_start_that_fails_leaves_everything(
    options: list[str],
    tmp_path: Path,
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = finished(tmp_path / "run")
    data = [] if "--data" in options else ["--data", str(folder)]
    line = ["--output", str(tmp_path / "run"), *data, *SMALL, "--steps", "2", *options]
    assert "error:" in _fails(capsys, *line, "--overwrite")
    assert contents(tmp_path / "run") == before
    fresh = ["--output", str(tmp_path / "fresh"), *line[2:]]
    assert "error:" in _fails(capsys, *fresh)
    assert not (tmp_path / "fresh" / "config.json").exists()


def test_overwrite_deletes_the_run_and_nothing_else(
    tmp_path: Path,
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sslfast.pretrain.command.run_job", stopped)
    output = tmp_path / "run"
    before = finished(output)
    line = ["pretrain", "--output", str(output), "--data", str(folder), *SMALL, "--steps", "2"]
    assert cli.main([*line, "--overwrite"]) == 130
    gone = before.keys() - contents(output).keys()
    assert gone == {"seed-0/checkpoint.pt", "results.json", "report.png"}
    assert json.loads((output / "config.json").read_text())["steps"] == 2


def stopped(job: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("wrapped", [False, True], ids=["OSError", "RuntimeError of torch"])
def test_a_full_disk_is_one_line_and_leaves_no_rest(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, _run().state_dict())
    before = contents(tmp_path)

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            if not wrapped:
                raise
            raise RuntimeError("unexpected pos 18048 vs 17944") from error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint\.pt cannot be written: No space left on device"):
        save_checkpoint(path, {})
    assert contents(tmp_path) == before


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """By torch's own writer, on what the system refuses."""
    resource = pytest.importorskip("resource")
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError, match="cannot be written: File too large"):
            save_checkpoint(tmp_path / "checkpoint.pt", _run().state_dict())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert contents(tmp_path) == {}


def test_a_cut_or_flipped_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, _run().state_dict())
    whole = path.read_bytes()
    for length in (0, 1, 3, 22, 64, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
            load_checkpoint(path)
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w"):
        pass
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as parts:
        data = next(each for each in parts.infolist() if "/data/" in each.filename)
    spoiled = bytearray(whole)
    spoiled[data.header_offset + 100 + len(data.filename)] ^= 1
    path.write_bytes(spoiled)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is (damaged|not a readable)"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = _run(), tmp_path / "checkpoint.pt"
    train(whole, tmp_path / "whole.pt", 100, StopRequest(), lambda run: None)
    train(_run(), path, 2, StopRequest(), lambda run: None)
    assert load_checkpoint(previous(path))["step"] == 4
    path.write_bytes(path.read_bytes()[:-50])
    resumed = _run()
    assert train(resumed, path, 100, StopRequest(), lambda run: None)
    assert resumed.losses == whole.losses
    assert f"going on from {previous(path)}" in capsys.readouterr().err


def _without(name: str) -> Damage:
    def damage(state: dict[str, Any]) -> None:
        del state[name]

    return damage


DAMAGES: dict[str, Damage] = {
    **{f"no {name}": _without(name) for name in FIELDS},
    "no config.width": lambda state: state["config"].pop("width"),
    "no views.channels": lambda state: state["views"].pop("channels"),
    "no weight": lambda state: state["method"].pop(next(iter(state["method"]))),
    "empty optimizer": lambda state: state["optimizer"].update(state={}),
    "step beyond": lambda state: state.update(step=10**6),
    "step before": lambda state: state.update(step=-5),
    "step in words": lambda state: state.update(step="4"),
    "NaN weights": lambda state: next(iter(state["method"].values())).fill_(torch.nan),
    "config is a list": lambda state: state.update(config=[1]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_foreign_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    run, path = _run(), tmp_path / "foreign.pt"
    run.train_step()
    state = run.state_dict()
    DAMAGES[name](state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        train(_run(), path, 100, StopRequest(), lambda run: None)
    if name in ("no weight", "no config.width", "no views.channels"):
        with pytest.raises(ValueError, match="here holds no encoder of this version"):
            encoder_from_checkpoint(load_checkpoint(path), "here")


def test_code_in_a_checkpoint_is_refused_without_advice(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save({"config": Path("a")}, path)
    with pytest.raises(ValueError, match="more than tensors and plain values") as refusal:
        load_checkpoint(path)
    assert "trust" not in str(refusal.value)


@pytest.mark.parametrize("stored", [[1], None, "a", 3], ids=str)
def test_a_configuration_that_is_none_is_named(stored: Any) -> None:
    with pytest.raises(ValueError, match="here is not a configuration"):
        config_from_dict(stored, "here")


@pytest.mark.parametrize("name", sorted(CONFIG.as_dict()))
def test_every_field_of_a_configuration_has_its_type(name: str) -> None:
    for wrong in ("4" if name not in ("method", "loss", "data_digest") else 4, None, [], True):
        with pytest.raises(ValueError, match=f"here: {name} must be of type"):
            config_from_dict({**CONFIG.as_dict(), name: wrong}, "here")


def test_resume_settles_the_steps(
    tmp_path: Path,
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(tmp_path / "run")
    line = ["--output", str(tmp_path / "run"), "--data", str(folder), "--resume", "--minutes", "1"]
    assert "argument --minutes: the steps of a run are settled" in _fails(capsys, *line)


def test_evaluate_looks_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "run")
    assert cli.main(["evaluate", str(tmp_path / "run" / "seed-0" / "checkpoint.pt")]) == 2
    assert f"{tmp_path / 'digits-jpeg'} is not a folder" in capsys.readouterr().err
