"""The output of every benchmark: the machine, a table, and machine-readable claims."""

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
    """A measured value with its target.

    Parameters
    ----------
    claim : str
        Name of the claim.
    value : float
        Measured value.
    target : float
        Value that the claim promises.
    better : {"higher", "lower"}
        Whether the value must be at least or at most the target.
    """

    claim: str
    value: float
    target: float
    better: Literal["higher", "lower"] = "higher"

    @property
    def holds(self) -> bool:
        """Whether the measured value meets the target."""
        if self.better == "higher":
            return self.value >= self.target
        return self.value <= self.target


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return processor, available cores, and versions of Python and the packages."""
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
    """Print the table and the claims, and write them to a JSON file if one is given."""
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
            f" {claim.value:.2f} (target {sign} {claim.target:g})"
        )
    if file is not None:
        written = [{**asdict(claim), "holds": claim.holds} for claim in claims]
        document = {"machine": machine, "rows": rows, "claims": written}
        file.write_text(json.dumps(document, indent=2) + "\n")
