"""Archives of tensors, numbers and text: written whole, checked before they are used.

An archive is a ``torch.save`` of plain containers, opened with ``weights_only=True``::

    {"format": NAME, "format_version": N, ..., "checksum": SHA-256 of all the rest}

Archives of earlier versions have no checksum; their records have the CRC-32 of the zip format.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpmace.errors import ModelFileError
from fpmace.files import atomic_write

Content = dict[str, Any]
CHECKSUM = "checksum"


def write_archive(path: str | Path, content: Mapping[str, object]) -> None:
    """Write an archive with its checksum; the name appears only when the file is whole."""
    buffer = io.BytesIO()
    torch.save({**content, CHECKSUM: checksum(content)}, buffer)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        # By our own stream: the error of a full disk is then an OSError.
        stream.write(buffer.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())


def open_archive(path: str | Path, format_name: str, version: int, what: str) -> Content:
    """Read an archive of a given format and compare its checksum.

    Args:
        version: the highest ``format_version`` that is understood.
        what: what the file should be, for messages: ``model file``.

    Raises:
        ModelFileError: if the file is missing, damaged, foreign, or of a newer format.
    """
    content = read_archive(path)
    found, given = content.get("format"), content.get("format_version")
    if found != format_name:
        raise ModelFileError(f"{path}: is not a {what} of fpmace (format {found!r})")
    if type(given) is not int or not 1 <= given <= version:
        raise ModelFileError(
            f"{path}: has format version {given!r}, this fpmace reads versions up to {version}; "
            "install a newer fpmace"
        )
    known = content.pop(CHECKSUM, None)
    if known is not None and known != checksum(content):
        raise ModelFileError(f"{path}: is damaged (its content does not match its checksum)")
    return content


def read_archive(path: str | Path) -> Content:
    """Read a ``torch.save`` of plain containers and tensors, on the CPU, running no code.

    Raises:
        ModelFileError: if the file is missing, damaged, or holds anything else.
    """
    if not Path(path).is_file():
        raise ModelFileError(f"{path}: no such file")
    try:
        _check_records(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{path}: holds pickled objects, so it is not a file of fpmace; models of other "
            "packages are converted by fpmace-convert"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ModelFileError:
        raise
    except Exception as error:  # torch and zipfile raise many unrelated types for damage
        raise ModelFileError(f"{path}: is damaged or not a file of fpmace") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: is not a file of fpmace")
    for name, tensor in _tensors(content):
        _check_tensor(path, name, tensor)
    return content


def _check_records(path: str | Path) -> None:
    """Refuse records that are packed (few bytes may inflate to any number) or damaged."""
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ModelFileError(f"{path}: has compressed records, so it is not a file of fpmace")
        broken = archive.testzip()
    if broken is not None:
        raise ModelFileError(f"{path}: is damaged ({broken} does not match its CRC-32)")


def _check_tensor(path: str | Path, name: str, tensor: Tensor) -> None:
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.is_quantized:
        raise ModelFileError(f"{path}: '{name}' is not a dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelFileError(f"{path}: '{name}' is larger than what the file holds of it")


def _tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from _tensors(value, f"{name}.{number}")


def nonfinite_tensor(content: object) -> str | None:
    """Dotted name of a floating-point tensor that holds NaN or infinity, or None."""
    for name, tensor in _tensors(content):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def copied(content: Any) -> Any:
    """Nested containers with copies of their tensors, out of any graph."""
    if isinstance(content, Tensor):
        return content.detach().clone()
    if isinstance(content, Mapping):
        return {key: copied(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(copied(value) for value in content)
    return content


def checksum(content: object) -> str:
    """SHA-256 over nested mappings, lists, tensors, numbers and text, whatever the device."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, content: object) -> None:
    if isinstance(content, Tensor):
        value = content.detach().cpu().contiguous()
        digest.update(f"tensor {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(content, Mapping):
        digest.update(f"mapping {len(content)} ".encode())
        for key, value in content.items():
            _feed(digest, key)
            _feed(digest, value)
    elif isinstance(content, (list, tuple)):
        digest.update(f"list {len(content)} ".encode())
        for value in content:
            _feed(digest, value)
    else:
        text = f"{type(content).__name__} {content!r}".encode()
        digest.update(f"{len(text)} ".encode() + text)
