"""Files written whole or not at all, CSV and Markdown tables, and the digest of tensors.

A file is written beside its place as ``.NAME.PLACE-PID-COUNT.tmp``, synchronised to the disk, and renamed: whoever
reads it finds the old content or the new one, also after a crash or a power cut. What a killed process left is removed
by the next process that writes into the same folder.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    *("Content", "JsonObject", "Row", "csv_text", "harmless_cell", "json_text", "make_folder", "markdown_table"),
    *("markdown_text", "process_place", "remove_stale", "state_digest", "write_atomically", "write_csv", "write_files"),
]

JsonObject: TypeAlias = dict[str, Any]
"""What JSON holds in braces: values are texts, numbers, truth values, lists, such objects, or None."""

Row: TypeAlias = Mapping[str, Any]
"""One row of a table, by column: such values, too."""

Content = bytes | str | Callable[[Path], object]
"""Of a file: bytes, text (written as UTF-8), or a function that writes to the path it is given."""

_STALE_SECONDS = 3600  # a temporary file of another machine that nobody touched for so long is nobody's
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-\d+\.tmp", re.DOTALL)
_COUNT = itertools.count()
_NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")


@functools.cache
def process_place() -> str | None:
    """Where process numbers mean the same: host, boot and process namespace; None where one cannot ask about them."""
    if os.name != "posix":
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot = namespace = ""  # not Linux: the host name alone
    return f"{platform.node()} {boot} {namespace}"


def _place_code() -> str:
    return hashlib.sha256((process_place() or platform.node()).encode("utf-8", "replace")).hexdigest()[:8]


def _temporary(path: Path) -> Path:
    # No longer than the file system's 255 bytes for a name, whatever the name is.
    name = os.fsdecode(os.fsencode(path.name)[:180])
    return path.with_name(f".{name}.{_place_code()}-{os.getpid()}-{next(_COUNT)}.tmp")


def _is_stale(path: Path) -> bool:
    written_by = _TEMPORARY.fullmatch(path.name)
    if not written_by:
        return False  # another program's
    place, pid = written_by[1], int(written_by[2])
    if place == _place_code() and process_place():
        if pid == os.getpid():
            return False
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass  # it lives and is another user's
    return time.time() - path.stat().st_mtime > _STALE_SECONDS


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder.

    A temporary file goes when its process is dead, or, where that cannot be told, after an hour without a change.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if _is_stale(path := folder / entry.name):
                        path.unlink()


def _sync(path: Path) -> None:
    """Have the disk hold what a file or a folder holds."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: str | os.PathLike[str], *, later: bool = False) -> Path:
    """Make a folder for results, with those above it; ``later`` only makes sure that it is there or can be made.

    Raises:
        FoveateError: it or a part of its path is a file, or it cannot be made.
    """
    path = Path(folder)
    # Not Path.exists, which is an error where the user may not look.
    there = next((each for each in (path, *path.parents) if os.path.exists(each)), path.parent)  # noqa: PTH110
    try:
        if later and not (there.is_dir() and os.access(there, os.W_OK)):
            raise NotADirectoryError if there.is_file() else OSError(f"{there} cannot be written")
        if not later:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        which = "it" if there == path else "a part of it"
        reason = f"{which} is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise FoveateError(f"cannot make the folder {path}: {reason or error}; choose another place") from error
    return path


def _prepare(folder: Path) -> None:
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    make_folder(folder)
    for made in missing:
        with contextlib.suppress(OSError):  # not every file system synchronises folders
            _sync(made.parent)
    remove_stale(folder)


def _write(content: Content, path: Path) -> None:
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def write_files(
    contents: Mapping[Path, Content], *, remove: Collection[Path] = (), advice: str = "choose another place"
) -> None:
    """Write files so that at every moment each is the old one or the new one, whole; on an error all are the old ones.

    Every file is written and synchronised beside its place before the first one is renamed. Folders are made. A
    symbolic link stays one; a device or a pipe is written to directly.

    Args:
        contents: by path, in the order in which they are put in place.
        remove: files that are removed between writing and renaming, because they belong to the old ones.
        advice: what to do when a file cannot be written, for the error.

    Raises:
        FoveateError: a file cannot be written, or its path is a folder; the message says what was left.
    """
    temporaries: dict[Path, tuple[Path, Path]] = {}
    path, done = Path(), list[str]()
    try:
        for path, content in contents.items():
            if path.is_dir():
                raise FoveateError(f"{str(path)!r} is a folder: name a file in it")
            if path.exists() and not path.is_file():
                _write(content, path)
                continue
            place = Path(os.path.realpath(path)) if path.is_symlink() else path
            _prepare(place.parent)
            temporaries[path] = (_temporary(place), place)
            _write(content, temporaries[path][0])
            _sync(temporaries[path][0])
        for path in remove:
            path.unlink(missing_ok=True)
        for path, (temporary, place) in temporaries.items():
            temporary.replace(place)
            done.append(path.name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and "space" not in advice:
            advice = f"free some space or {advice}"
        state = f"only {', '.join(done)} is new" if done else "what was there is untouched"
        raise FoveateError(f"cannot write {path}: {error.strerror or error}; {state}; {advice}") from error
    finally:
        for temporary, _ in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    for folder in {place.parent for _, place in temporaries.values()}:
        with contextlib.suppress(OSError):  # not every file system synchronises folders
            _sync(folder)


def write_atomically(path: Path, content: Content, *, advice: str = "choose another place") -> Path:
    """Write one file, see ``write_files``.

    Returns:
        The path.

    Raises:
        FoveateError: it cannot be written; the old file is untouched.
    """
    write_files({path: content}, advice=advice)
    return path


def csv_text(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None, *, digits: int | None = None
) -> str:
    """A heading and one line for each row, as CSV with line feeds; None is an empty cell.

    Text that a spreadsheet would take for a formula, such as ``=1+1``, gets an apostrophe before it; numbers do not.

    Args:
        rows: each has a value for each column.
        columns: the heading; without it the keys of the first row.
        digits: significant digits of numbers with a fraction; without it all that they have.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {k: f"{v:.{digits}g}" if digits and isinstance(v, float) else v for k, v in row.items()}
        writer.writerow({key: harmless_cell(cell) for key, cell in cells.items()})
    return text.getvalue()


def harmless_cell(cell: object) -> object:
    """A cell that no spreadsheet computes: text that begins as a formula gets an apostrophe before it."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def write_csv(
    path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None, *, digits: int | None = None
) -> Path:
    """Write rows as ``csv_text`` gives them, whole or not at all.

    Returns:
        The path.

    Raises:
        FoveateError: the file cannot be written.
    """
    return write_atomically(path, csv_text(rows, columns, digits=digits))


def json_text(value: object, *, indent: int | None = 2) -> str:
    """JSON that people can read; bytes of a file name that are not UTF-8 are written as codes, and read back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown_text(text: str) -> str:
    """Text as Markdown shows it literally: nothing in it is a tag, a link, an emphasis or the end of a cell."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.splitlines()))


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] | None = None
) -> list[str]:
    """The lines of a table in Markdown.

    Args:
        headings: one for each column.
        rows: the cells; a vertical bar in one is written so that it does not end the cell, a line break as a space.
        right: which columns are flush right; without it those that hold numbers only, but never the first.
    """
    cells = [[" ".join(re.sub(r"(?<!\\)\|", r"\\|", str(cell)).splitlines()) for cell in row] for row in rows]
    if right is None:
        count = range(1, len(headings))
        right = [n for n in count if all(not row[n] or row[n].lstrip("+-")[:1].isdigit() for row in cells)]
    rule = ["--:" if n in right else "---" for n in range(len(headings))]
    return [f"| {' | '.join(line)} |" for line in ([str(heading) for heading in headings], rule, *cells)]


def state_digest(tensors: Iterable[tuple[str, Tensor]], header: str = "") -> str:
    """SHA-256 in hex of a text and of tensors with their names, types and shapes, in the order given.

    Args:
        tensors: name and tensor, such as ``model.state_dict().items()``.
        header: a text that is part of what is digested.
    """
    import torch

    digest = hashlib.sha256(header.encode())
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
