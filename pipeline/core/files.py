"""Files and folders that are whole or absent: written aside, flushed, renamed."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from pipeline.core.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old content or the new, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, so that no reader ever sees half of it; nothing is left aside where that fails."""
    aside = _aside(path, "partial")
    with naming(path):
        if path.exists() and not path.is_file():  # /dev/null would become a file
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise


def require_writable(path: Path, starts: bytes = b"") -> None:
    """Raises UserError where a file cannot come to be, for all that can be known before the work; leaves nothing.

    A file that is there may be replaced by one of its kind only: if it `starts` alike, or is empty.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: cannot be written (it is a folder); choose another --out")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be written (a pipe or a device is there); choose another --out")
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(len(starts)) not in (starts, b""):
                    raise UserError(f"{path}: cannot be written (it holds something else); choose another --out")
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        path.exists()  # a name that is too long is one that does not exist, or an error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', error)}); choose another --out") from None
    if not nearest.is_dir():
        raise UserError(f"{path}: cannot be written ({nearest} is no folder); choose another --out")
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk in the block as an OSError that names `path`, whichever library meets them.

    A write to a full disk names no file, and that of safetensors is no OSError.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_file(path: Path) -> bytes:
    """A file's bytes. OSError as usual, and for a pipe or a device too: one may be waited for in vain, the other has no end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a pipe or a device, no file", str(path))
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError where it is missing or damaged."""
    try:
        return json.loads(read_file(path).decode())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; has the command that writes it finished?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that, or run its command again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON ({path.stat().st_size} bytes); delete it and run its command again") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path`, replacing an older one, only when the block ends without an error.

    A path has one writer at a time, so what killed writers left aside is removed. OSError names the path (`naming`).
    """
    aside = _aside(path, "partial")
    with naming(path):
        if path.exists() and not path.is_dir():
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            for file in aside.rglob("*"):
                if file.is_file():
                    with open(file, "rb+") as handle:
                        os.fsync(handle.fileno())
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if not path.exists():
            os.rename(aside, path)
        elif _exchange(aside, path):
            shutil.rmtree(aside, ignore_errors=True)
        else:  # a file system that cannot: for a moment there is neither
            old = _aside(path, "old")
            os.rename(path, old)
            os.rename(aside, path)
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot (Linux's local ones can)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _aside(path: Path, ending: str) -> Path:
    """A hidden name beside a path that no process of any machine uses, not even one of the same id in another container."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{ending}")


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
