"""What every benchmark ends with: the machine, a table, and claims that a program can check."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pipeline.cores import available_cores


@dataclass(frozen=True)
class Claim:
    """One figure that is promised.

    Parameters
    ----------
    claim : str
        Its name.
    value, target : float
        What was measured, and what was promised.
    better : {"higher", "lower"}
    """

    claim: str
    value: float
    target: float
    better: Literal["higher", "lower"] = "higher"

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        if self.better == "higher":
            return self.value >= self.target
        return self.value <= self.target


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """The processor, how much of it may be used, and the versions that were measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def report(
    machine: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    claims: Sequence[Claim],
    file: Path | None,
) -> None:
    """Print the table and the claims, and write them as JSON where a file is given."""
    console = Console(width=150)
    console.print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    console.print(" ".join(f"{name} {v}" for name, v in machine["packages"].items()))
    table = Table(*(rows[0] if rows else ()), box=None)
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    for claim in claims:
        sign = ">=" if claim.better == "higher" else "<="
        console.print(
            f"{'holds ' if claim.holds else 'MISSED'} {claim.claim}:"
            f" {claim.value:.2f} (promised {sign} {claim.target:g})"
        )
    if file is not None:
        written = [{**asdict(claim), "holds": claim.holds} for claim in claims]
        document = {"machine": machine, "rows": rows, "claims": written}
        file.write_text(json.dumps(document, indent=2) + "\n")
