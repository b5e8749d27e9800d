"""Read seeded byte mutants of one object, in a process whose exit its parent observes.

Run by `test_mutants` as ``python mutant_child.py SYNTAX COUNT SEED``; prints one JSON line: how
often each outcome came, the slowest mutant in seconds, and the most memory in MiB that reading them
added. The number of the mutant at work is the last line on standard error.
"""

import faulthandler
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.dicom.volume import read_volume
from storage_schemas.errors import SliceError, StudyError
from tests import made_dicom

SHAPE = (48, 40)
HANG_SECONDS = 60


def make_objects(syntax: str) -> list[bytes]:
    """A stack of three slices; an enhanced object of three frames where the syntax says "+"."""
    bits = 8 if syntax.strip("+") in made_dicom.EIGHT_BIT else 12
    words = np.stack([made_dicom.smooth_image(SHAPE, bits, seed) for seed in range(3)])
    if syntax.endswith("+"):
        positions = [[0, 0, z] for z in range(3)]
        return [made_dicom.make_enhanced(words, positions, syntax[:-1], BitsStored=bits)]
    return made_dicom.make_stack(words, syntax, BitsStored=bits)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change one to four bytes, or repeat or remove a piece, in the pixel data with 50 % chance."""
    changed = bytearray(data)
    pixels = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"), 0)
    first = pixels if rng.random() < 0.5 else 132
    last = min(len(data), first + 200) if rng.random() < 0.3 else len(data)
    kind = rng.random()
    if kind < 0.8:
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(first, last)] = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
    else:
        at, length = rng.randrange(first, last), rng.randint(1, 64)
        piece = changed[at : at + length] if kind < 0.9 else b""
        changed[at : at + (0 if kind < 0.9 else length)] = piece
    return bytes(changed)


def read(objects: list[bytes]) -> list[str]:
    """Outcome of the first object; no object may be lost."""
    try:
        volume = read_volume(made_dicom.name_objects(objects), threads=1)
    except StudyError as error:
        found = (*error.refused, *error.unused)  # type: ignore[attr-defined]
        assert {e.key for e in found} == {name for name, _ in made_dicom.name_objects(objects)}
        return [error.kind]
    found = (*volume.refused, *volume.unused)
    keys = {s.key for s in volume.slices} | {e.key for e in found}
    assert keys == {name for name, _ in made_dicom.name_objects(objects)}
    assert all(isinstance(e, SliceError) for e in volume.refused)
    assert not any("secret" in str(e) for e in found)
    kinds = [e.kind for e in found]
    return kinds or ["ok"]


def main() -> None:
    """Read all mutants of one syntax."""
    syntax, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    objects = make_objects(syntax)
    assert read(objects) == ["ok"]
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        mutant = mutate(objects[0], random.Random(f"{seed}/{syntax}/{number}"))
        print(number, file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        start = time.perf_counter()
        outcomes.update(read([mutant, *objects[1:]]))
        slowest = max(slowest, time.perf_counter() - start)
    faulthandler.cancel_dump_traceback_later()
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"outcomes": outcomes, "slowest": slowest, "extra_mib": extra}))


if __name__ == "__main__":
    main()
