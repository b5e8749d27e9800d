"""All commands and examples of the documents run, and all links are valid.

Blocks marked ``console`` and ``python`` run unchanged, in a folder with SOURCE, its masks and
tables, and the output of earlier commands. A block marked ``no-run`` must be in `NOT_RUN`, with the
reason. New documents are tested without being named here.
"""

import argparse
import csv
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli as pipeline_cli
from pipeline.phantom import make_cohort
from storage_schemas.store import StudyStore
from tests.conftest import REPOSITORY
from training import cli as training_cli

DOCUMENTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
)
LANGUAGES = {"console", "python", "text", "toml", "yaml"}
NOT_RUN = {
    "make demo": "takes minutes, and its steps run here one by one",
    "make setup": "creates the environment that this test runs in",
    "from dask_jobqueue import SLURMCluster": "needs a SLURM cluster",
    "torchrun --standalone --nproc-per-node 4 -m training.cli boost STORE RUN": "needs several "
    "GPUs; test_training_ranks.py runs it on two processes",
    "napari --plugin napari-ome-zarr STORE/volumes.zarr/<study>/C4": "needs a screen",
}
SMALL = {
    "cspine-training localizer": "--preset demo --size 32 --steps 2",
    "cspine-training boost": "--preset demo --size 32 --patch 8 --width 16 --rounds 1 "
    "--slices-per-round 100 --epochs 0.5 --guard 0.15 --calibration 0.45 --test 0.15",
}
"""Options added to commands whose defaults take hours; all others run unchanged."""
COMMANDS: dict[str, tuple[Callable[[list[str]], int], Callable[[], argparse.ArgumentParser]]] = {
    "cspine-pipeline": (pipeline_cli.main, pipeline_cli.parser),
    "cspine-training": (training_cli.main, training_cli.parser),
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the words of its info string, and its lines."""

    words: tuple[str, ...]
    text: str

    @property
    def first(self) -> str:
        """First line, without its comment."""
        return self.text.splitlines()[0].partition(" #")[0].rstrip()

    @property
    def runs(self) -> bool:
        return self.words[0] in ("console", "python", "toml") and "no-run" not in self.words


def blocks(document: str) -> list[Block]:
    text = (REPOSITORY / document).read_text()
    found = re.findall(r"^```(.*?)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(tuple(info.split()) or ("none",), body) for info, body in found]


def command_lines(block: Block) -> Iterator[list[str]]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with SOURCE and its tables, in which the commands of the README have run."""
    root = tmp_path_factory.mktemp("documents")
    make_cohort(root / "SOURCE", studies=20, size=48, slices=24, workers=1)
    first = min((root / "SOURCE" / "train_images").iterdir())
    (root / "NEW").symlink_to(first, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_blocks("README.md")
        yield root


def run_blocks(document: str) -> list[dict[str, Any]]:
    """Run the blocks of a document in the current folder; return the variables of its examples."""
    made = []
    for block in filter(lambda block: block.runs, blocks(document)):
        if block.words[0] == "python":
            names: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(block.text, document, "exec"), names)
            made.append(names)
            continue
        if block.words[0] == "toml":
            Path(block.words[1]).write_text(block.text)
            continue
        for words in command_lines(block):
            main, _ = COMMANDS[words[0]]
            small = SMALL.get(" ".join(words[:2]), "").split()
            assert main([*words[1:], *small]) == 0, f"{document}: {shlex.join(words)}"
    return made


def test_the_commands_of_the_readme_write_reports_and_predictions(folder: Path) -> None:
    store = StudyStore.open(str(folder / "STORE"))
    assert len(store.studies()) == 20
    for page in ("preprocessing.html", "training.html"):
        assert (folder / page).read_text().startswith("<!doctype html>")
    with (folder / "predictions.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 20


@pytest.mark.parametrize(
    "document",
    [name for name in DOCUMENTS if name != "README.md" and any(b.runs for b in blocks(name))],
)
def test_the_commands_and_examples_of_a_document_run(folder: Path, document: str) -> None:
    for names in run_blocks(document):
        if "mask" in names:
            crop = StudyStore.open("STORE").read_crop(names["first"].study, names["first"].level)
            assert (crop.hu == names["hu"]).all()
            assert (crop.mask == names["mask"]).all()
        if "labels" in names:
            assert int((names["labels"] == 1).sum().compute()) == names["first"].voxels
        if "broken" in names:
            assert {crops for _, crops, _ in names["broken"].fetchall()} == {20}
        if "answer" in names:
            assert 0 <= names["answer"]["score"] <= 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language_and_a_reason_if_it_does_not_run(document: str) -> None:
    for block in blocks(document):
        assert block.words[0] in LANGUAGES, f"{document}: {block.first}"
        if block.words[0] in ("console", "python"):
            assert block.runs != (block.first in NOT_RUN), f"{document}: {block.first}"


def test_every_reason_belongs_to_a_block() -> None:
    skipped = {
        block.first for name in DOCUMENTS for block in blocks(name) if "no-run" in block.words
    }
    assert skipped == set(NOT_RUN)


def test_every_make_target_in_the_documents_exists() -> None:
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"(?:^|`)make ([a-z]+)", (REPOSITORY / document).read_text(), re.M)
    }
    assert {"demo", "test", "setup", "ci"} <= named
    for target in named:
        arguments = ["make", "--dry-run", "--no-print-directory", target]
        subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)


def test_commands_in_the_text_can_be_parsed() -> None:
    """A name alone, such as `cspine-pipeline run`, must be a command."""
    for document in DOCUMENTS:
        text = (REPOSITORY / document).read_text()
        for found in re.findall(r"(?<![\w/])`((?:cspine-pipeline|cspine-training)[^`]*)`", text):
            words = shlex.split(" ".join(found.split()))
            _, parser = COMMANDS[words[0]]
            (commands,) = [
                action
                for action in parser()._actions
                if isinstance(action, argparse._SubParsersAction)
            ]
            for name in words[1].split(",") if len(words) > 1 else []:
                assert name in commands.choices, f"{document}: {found}"
            if len(words) > 2:
                parser().parse_args(words[1:])


def headings(path: Path) -> set[str]:
    """Anchors that GitHub makes from the headings of a document."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_has_an_existing_file_and_heading(document: str) -> None:
    path = REPOSITORY / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        aim = (path.parent / name).resolve() if name else path
        assert aim.exists(), f"{document}: {target}"
        assert aim.is_relative_to(REPOSITORY)
        if anchor:
            assert anchor in headings(aim), f"{document}: {target}"


def test_every_file_in_a_code_span_exists() -> None:
    roots = "pipeline|training|presentation|storage_schemas|tests|benchmarks|docs"
    for document in DOCUMENTS:
        text = (REPOSITORY / document).read_text()
        for name in re.findall(rf"`((?:{roots})/[\w./-]+)`", text):
            assert (REPOSITORY / name).exists(), f"{document}: {name}"


def test_images_are_small_and_support_light_and_dark_mode() -> None:
    images = list((REPOSITORY / "docs/images").iterdir())
    assert sum(path.stat().st_size for path in images) < 600_000
    for path in images:
        if path.suffix == ".svg":
            assert "prefers-color-scheme: dark" in path.read_text()
            assert json.dumps(path.read_text()).isascii()
