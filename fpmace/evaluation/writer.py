"""Results written in a stream to a file that takes its name only when it is whole."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from ase import Atoms
from ase.io.extxyz import write_xyz

from fpmace.annotations import Values
from fpmace.archive import open_archive, write_archive
from fpmace.errors import DataError, ModelFileError
from fpmace.files import atomic_write, named_errors

FORMAT, FORMAT_VERSION = "fpmace.evaluation", 1


def text_of(atoms: Atoms) -> str:
    """A frame of extended XYZ."""
    stream = io.StringIO()
    write_xyz(stream, atoms)
    return stream.getvalue()


class ResumableWriter:
    """Appends texts to ``OUTPUT.partial``; renames it to ``OUTPUT`` at the end.

    Beside it ``OUTPUT.partial.state`` says how many frames are safely written, up to which byte,
    and whatever else the caller needs to go on. A killed run loses the frames since the last
    save; they are cut off and computed again.

    Args:
        path: the output.
        fingerprint: what the run depends on, by name; a run is only continued where all agree.
        resume: go on from a partial file, if there is one.
        save_every: seconds between saves.

    Attributes:
        n_done: frames written.
        state: what the caller stored, empty at the start.

    Raises:
        DataError: the partial file belongs to another run or is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        fingerprint: dict[str, str],
        *,
        resume: bool = False,
        save_every: float = 20.0,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.state_path = self.partial.with_name(self.partial.name + ".state")
        self.fingerprint, self.save_every = fingerprint, save_every
        self.n_done = 0
        self.state: Values = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        offset = self._continue() if resume and self.partial.exists() else 0
        self.resumed = self.n_done > 0
        self._stream: IO[str] = self.partial.open("r+" if offset else "w", encoding="utf-8")
        self._stream.truncate(offset)
        self._stream.seek(offset)
        self._saved_at = time.monotonic()

    def write(self, texts: Iterable[str]) -> None:
        """Append the texts of structures."""
        with named_errors(self.partial):
            for text in texts:
                self._stream.write(text)
                self.n_done += 1

    def save(self, state: Callable[[], Values], *, force: bool = False) -> None:
        """Make what was written safe, if the last save is long enough ago."""
        if not force and time.monotonic() - self._saved_at < self.save_every:
            return
        with named_errors(self.partial):
            self._stream.flush()
            os.fsync(self._stream.fileno())
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "n_done": self.n_done,
            "offset": self._stream.tell(),
            "state": state(),
        }
        write_archive(self.state_path, content)
        self._saved_at = time.monotonic()

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Give the file its name; ``convert`` writes it from the partial one where they differ."""
        self.close()
        if convert is None:
            self.partial.replace(self.path)
        else:
            with atomic_write(self.path) as temporary:
                convert(self.partial, temporary)
            self.partial.unlink()
        self.state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the partial file, leaving it for a later run."""
        with named_errors(self.partial):
            self._stream.close()

    def damaged(self) -> DataError:
        """What to say of a state that cannot be gone on from."""
        return DataError(f"{self.state_path}: is damaged; delete it to start from the beginning")

    def _continue(self) -> int:
        if not self.state_path.exists():
            return 0
        try:
            content = open_archive(self.state_path, FORMAT, FORMAT_VERSION, "state file")
            found, offset = dict(content["fingerprint"]), int(content["offset"])
            self.n_done, self.state = int(content["n_done"]), dict(content["state"])
            if offset < 0 or self.n_done < 0:
                raise ValueError("negative")
        except (ModelFileError, KeyError, TypeError, ValueError) as error:
            raise self.damaged() from error
        for name, value in self.fingerprint.items():
            if found.get(name) != value:
                raise DataError(
                    f"{self.partial}: was made with another {name} ({found.get(name)}, now "
                    f"{value}); leave --resume out to start from the beginning"
                )
        if self.partial.stat().st_size < offset:
            raise DataError(
                f"{self.partial}: is shorter than {self.state_path.name} says; delete both to "
                "start from the beginning"
            )
        return offset
