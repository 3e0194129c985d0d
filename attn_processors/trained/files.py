"""Files of trained weights: found on disk or on the hub, checked by their keys, read.

Safetensors only: the other formats are pickles, which run code when they are opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

__all__ = ["Shapes", "Source", "check_keys", "find", "read", "read_json", "read_shapes"]

_SUFFIX = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 6  # keys that an error spells out

Source = str | Path
Shapes = Mapping[str, tuple[int, ...]]


def find(
    source: Source,
    names: Sequence[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The first of `names` there is in `source`, a folder or repository, or `source`, if a file.

    A repository of the hub is owner/name, owner/name/folder, or owner/name/file.safetensors. With
    `local_files_only`, or HF_HUB_OFFLINE set, it is looked for in the cache alone. Raises
    FileNotFoundError, and ValueError where all there is are pickles.
    """
    path = Path(source).expanduser()
    _refuse_pickle(path)
    if path.is_file():
        return path
    if path.is_dir():
        return _find_in_folder(path, names)
    parts = str(source).split("/")
    is_repository = len(parts) > 1 and parts[0] not in ("", ".", "..", "~")
    if not is_repository or (len(parts) == 2 and path.suffix == _SUFFIX):
        raise FileNotFoundError(f"no such file or folder: {source}")
    return _download("/".join(parts[:2]), "/".join(parts[2:]), names, revision, local_files_only)


def _find_in_folder(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path for path in folder.iterdir() if path.is_file())
    if not any(path.suffix == _SUFFIX for path in there):
        for path in there:
            _refuse_pickle(path)
    listed = ", ".join(path.name for path in there) or "no file"
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)}; there is {listed}")


def _download(
    repo: str, inner: str, names: Sequence[str], revision: str | None, local_files_only: bool
) -> Path:
    is_file = inner.endswith(_SUFFIX)
    wanted = [inner] if is_file else [str(PurePosixPath(inner, name)) for name in names]
    for name in wanted:
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=local_files_only)
            return Path(path)
        except EntryNotFoundError as error:
            refused = error
        except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
            refused = error
            break
    raise FileNotFoundError(
        f"{repo} is no folder here, and the hub's repository of that name did not give "
        f"{' or '.join(wanted)}: {refused}"
    ) from refused


def _refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which runs code when it is opened, and is not read; "
            "convert it with safetensors.torch.save_file"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is corrupt or no safetensors file ({error}); fetch it again"
        ) from None
    with file:
        yield file


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the file, from its header alone."""
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        packed = [key for key, value in slices.items() if value.get_dtype() not in _FLOATS]
        if packed:
            raise ValueError(
                f"{path} is quantised: {_listed(packed)} are not of {', '.join(_FLOATS)}; "
                "take the file in full precision"
            )
        return {key: tuple(value.get_shape()) for key, value in slices.items()}


def read(path: Path, keys: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of the file by new name, `keys` saying which is which; mapped until moved."""
    with _opened(path) as file:
        return {name: file.get_tensor(key) for name, key in keys.items()}


def check_keys(source: Source, found: Shapes, expected: Shapes, *, exact: bool = False) -> None:
    """Raises ValueError listing missing and, if `exact`, unexpected keys, and other shapes."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected] if exact else []
    other = [
        f"{key} {found[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    lists = {"missing keys": missing, "unexpected keys": unexpected, "other shapes": other}
    wrong = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in lists.items() if keys]
    if wrong:
        raise ValueError(f"{source}: {'; '.join(wrong)}")


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
