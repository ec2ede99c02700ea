"""What decides the result of a run: one flat, checked dataclass, stored in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sslfast.data.recipes import ViewRecipe

MAX_SEED = 1 << 42  # a pipeline draws every epoch's order from the seed and the epoch
_KINDS: Mapping[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}

METHODS = ("simclr",)
LOSSES = ("fused", "eager")
RESUME_HINT = "give the value of the run, or start anew with another --output or --overwrite"


@dataclass(frozen=True)
class Config:
    """Configuration of a run; a resumed run must have the same.

    Args:
        method: name of the method, default "simclr".
        loss: "fused" (``sslfast.losses``) or "eager" (plain PyTorch), default "fused".
        steps: optimizer steps per seed.
        batch_size: images per step; the loss sees twice as many rows.
        temperature: of NT-Xent.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        seed: of the first of the seeds.
        seeds: how many seeds are trained, seed, seed + 1, ...
        width: channels after the encoder's first convolution.
        ceiling_steps: optimizer steps of the supervised ceiling; 0 leaves it out.
        data_digest: sha256 of the training images.
    """

    method: str = "simclr"
    loss: str = "fused"
    steps: int = 350
    batch_size: int = 512
    temperature: float = 0.2
    lr: float = 0.003
    weight_decay: float = 1e-4
    seed: int = 0
    seeds: int = 3
    width: int = 16
    ceiling_steps: int = 100
    data_digest: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), _KINDS[str(field.type)]
            if isinstance(value, bool) or not isinstance(value, kind):
                raise ValueError(
                    f"{field.name} must be of type {field.type}, got {type(value).__name__}"
                )
        for name, allowed in (("method", METHODS), ("loss", LOSSES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name, low in (
            ("steps", 1), ("batch_size", 2), ("seed", 0), ("seeds", 1), ("width", 1),
            ("ceiling_steps", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("temperature", "lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.seed + self.seeds > MAX_SEED:
            raise ValueError(
                f"seed must leave all seeds below {MAX_SEED}, got {self.seed} and {self.seeds} of "
                "them"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


VIEWS: Mapping[str, ViewRecipe] = {"simclr": ViewRecipe()}


def refuse_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """ValueError that names the first field in which ``wanted`` differs from the stored run."""
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"{name} is {wanted.get(name)!r} but the run in {where} has "
                f"{stored.get(name)!r}; {RESUME_HINT}"
            )


def config_from_dict(stored: Mapping[str, Any], where: str) -> Config:
    """The configuration of a stored run; ValueError if it is not one."""
    if not isinstance(stored, Mapping):
        raise ValueError(f"{where} is not a configuration: it holds a {type(stored).__name__}")
    names = {field.name for field in fields(Config)}
    if stored.keys() != names:
        odd = ", ".join(sorted(stored.keys() ^ names))
        raise ValueError(f"{where} is not a configuration of this version: see the fields {odd}")
    try:
        return Config(**stored)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
