"""A fuzzer: every case ends well or with one clear line, in its time, runs nothing it reads, and leaves what was there."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.run_folder import versions

SECONDS = 60  # what takes longer hangs
LONGEST = 2000  # letters of a message
SCALE_OUT = Path(__file__).resolve().parents[2] / "results" / "scale_out.json"


class Hang(BaseException):
    """Not an Exception: nothing on the way may take it for an error of its own."""


class Fuzzer:
    """Tries cases of one kind, counts how they end, and remembers those that end badly; `check` tells them all."""

    def __init__(self, kind: str, folder: Path, tally: Counter[tuple[str, str]]) -> None:
        self.kind, self.tally = kind, tally
        self.folder, self.tripwire = folder, folder / "executed"
        self.faults: list[str] = []

    def random(self, case: object) -> Random:
        """The randomness of a case: the same every time."""
        return Random(f"{self.kind} {case}")

    def attempt(self, case: object, action: Callable[..., Any], *arguments: Any) -> Any:
        """What the action gives; None where it refuses in one line, or ends badly."""
        before = signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        result = None
        try:
            result = action(*arguments)
            self.count("worked")
        except UserError as error:
            self.refused(case, str(error))
        except (Exception, Hang) as error:
            self.fault(case, f"{type(error).__name__}: {str(error)[:300]}", traceback.extract_tb(error.__traceback__)[-1])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self.require_unharmed(case)
        return result

    def refused(self, case: object, message: str) -> None:
        """Count a refusal, whose message has to be one line that says what to do."""
        self.count("refused")
        if "\n" in message or "Traceback" in message or not 10 < len(message) < LONGEST or "; " not in message:
            self.fault(case, f"no clear line: {message[:300]!r}")

    def require(self, case: object, holds: bool, what: str) -> None:
        """A fault unless it holds."""
        if not holds:
            self.fault(case, what)

    def require_unharmed(self, case: object) -> None:
        """Nothing that was read has been run."""
        if self.tripwire.exists():
            self.tripwire.unlink()
            self.fault(case, "ran what it read")

    def count(self, outcome: str) -> None:
        self.tally[self.kind, outcome] += 1

    def fault(self, case: object, *what: object) -> None:
        self.count("fault")
        self.faults.append(f"{case}: {' '.join(map(str, what))}")

    def check(self) -> None:
        """Fails with all faults."""
        assert not self.faults, f"{len(self.faults)} faults\n" + "\n".join(self.faults)

    @property
    def bombs(self) -> dict[str, bytes]:
        """Pickles, by the protocol, that touch the tripwire when they are read; a program that does; and what torch saves."""
        place = str(self.tripwire)
        text = f"cbuiltins\nopen\n(S{place!r}\nS'w'\ntR.".encode()
        return {"pickle 0": text, "pickle 2": b"\x80\x02" + text, "program": f"open({place!r}, 'w')\n".encode()}


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"still at it after {SECONDS} seconds")


def signature(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file below the folders, its size and when it was changed."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`scale` multiplies the number of cases: 1 in the fast run, 10 in the slow one."""
    if "scale" in metafunc.fixturenames:
        metafunc.parametrize("scale", [pytest.param(1, id="fast"), pytest.param(10, id="slow", marks=pytest.mark.slow)])


@pytest.fixture(scope="session")
def tally() -> Iterator[Counter[tuple[str, str]]]:
    """How many cases of each kind ended how; written at the end to the file that FUZZ_RESULTS names."""
    counts: Counter[tuple[str, str]] = Counter()
    yield counts
    if "FUZZ_RESULTS" in os.environ:
        kinds: dict[str, dict[str, int]] = {}
        for (kind, outcome), count in sorted(counts.items()):
            kinds.setdefault(kind, {})[outcome] = count
        result = {"cases": sum(counts.values()), "kinds": kinds, "seconds_per_case": SECONDS, "versions": versions()}
        write_json(Path(os.environ["FUZZ_RESULTS"]), result)


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest, tmp_path: Path, tally: Counter[tuple[str, str]]) -> Iterator[Fuzzer]:
    """The fuzzer of a test, whose kind is the test's name; it tells its faults at the end."""
    found = Fuzzer(request.function.__name__.removeprefix("test_").replace("_", " "), tmp_path, tally)
    yield found
    found.check()


@pytest.fixture(scope="session")
def tree() -> Callable[..., dict[str, tuple[int, int]]]:
    """`signature`."""
    return signature


@pytest.fixture(scope="session")
def note() -> Callable[[str, str, dict[str, Any] | None], None]:
    """Writes into results/scale_out.json what a setup gave; None before it is tried, so that no old success stays."""

    def written(part: str, name: str, found: dict[str, Any] | None) -> None:
        known = json.loads(SCALE_OUT.read_text()) if SCALE_OUT.exists() else {}
        known |= {"what": "largest relative differences from one process, and how the others end when one dies"}
        known.setdefault(part, {}).pop(name, None)
        if found is not None:
            known[part][name] = found
        write_json(SCALE_OUT, known | {"versions": versions()})

    return written
