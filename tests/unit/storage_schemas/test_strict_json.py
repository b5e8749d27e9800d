import subprocess
import sys

import pytest

THREADS = """
import dataclasses, sys, threading
from storage_schemas.parsing.strict_json import convert, decode

sys.setswitchinterval(1e-6)
fields = [(f"f{n}", int) for n in range(12)]
document = {f"g{n}": {name: 1 for name, _ in fields} for n in range(6)}
text = repr(document).replace("'", '"')
for _ in range(100):
    inner = dataclasses.make_dataclass("Inner", fields)
    outer = dataclasses.make_dataclass("Outer", [(f"g{n}", inner) for n in range(6)])
    barrier = threading.Barrier(8)

    def read():
        barrier.wait()
        USE

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("use", ["decode(text, outer)", "convert(document, outer)"])
def test_threads_may_read_a_new_type_at_the_same_time(use: str) -> None:
    # In a process of its own: without the lock, msgspec ends it.
    made = subprocess.run([sys.executable, "-c", THREADS.replace("USE", use)], check=False)
    assert made.returncode == 0
