"""The manifest of a made data set: what was asked for, and the sha256 of every file it holds.

Two hashes, because JPEG bytes may differ between builds of Pillow for the same pixels:

- ``recipe_sha256`` covers the source pixels, the parameters and the generator's version. It names
  the data set on every machine and is what a resumed run compares.
- ``files_sha256`` covers the sorted list of file names and contents on *this* machine. It is
  checked whenever the set is read again, file by file, so a damaged file is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MARKS = ("recipe_sha256", "files_sha256")  # nobody else's manifest has both


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_file_list(files: Mapping[str, str]) -> str:
    """One hash over the sorted ``name  sha256`` lines, the form ``sha256sum`` prints."""
    return sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode())


def write_manifest(
    root: Path, recipe: dict[str, Any], recipe_hash: str, files: Mapping[str, str]
) -> None:
    content = {
        "recipe": recipe,
        "recipe_sha256": recipe_hash,
        "files_sha256": hash_file_list(files),
        "files": dict(sorted(files.items())),
    }
    (root / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest below ``root``, or None where there is none of sslfast's.

    A folder of somebody's own may hold a ``manifest.json`` of another kind.

    Raises:
        ValueError: the manifest is sslfast's, by its names of hashes, and damaged.
    """
    path = root / MANIFEST
    if not path.is_file():
        return None
    text = path.read_bytes().decode(errors="replace")
    if not all(f'"{mark}"' in text for mark in MARKS):
        return None
    try:
        manifest: dict[str, Any] = json.loads(text)
        intact = hash_file_list(manifest["files"]) == manifest["files_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a damaged manifest of sslfast ({error!r})") from error
    if not intact:
        raise ValueError(f"{path}: its file list does not match its files_sha256")
    return manifest
