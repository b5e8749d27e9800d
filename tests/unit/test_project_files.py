"""The files that a forge, a registry or a citation manager reads are valid, and agree."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

SCHEMAS = {
    ".github/workflows/ci.yml": "vendor.github-workflows",
    ".github/workflows/nightly.yml": "vendor.github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
    ".github/dependabot.yml": "vendor.dependabot",
    "CITATION.cff": "vendor.citation-file-format",
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted(REPOSITORY.glob(".github/workflows/*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(workflow: Path) -> list[dict[str, Any]]:
    return list(chain.from_iterable(job["steps"] for job in load(workflow)["jobs"].values()))


def test_every_file_that_a_forge_reads_has_a_schema_here() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob(".github/**/*.yml")
    }
    assert found | {"CITATION.cff"} == set(SCHEMAS)


@pytest.mark.parametrize("schema", sorted(set(SCHEMAS.values())))
def test_files_keep_to_their_schema(schema: str) -> None:
    files = [name for name, wanted in SCHEMAS.items() if wanted == schema]
    command = [sys.executable, "-W", "ignore", "-m", "check_jsonschema"]
    command += ["--force-filetype", "yaml", "--builtin-schema", schema, *files]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_and_pin_each_action_by_its_commit(workflow: Path) -> None:
    assert load(workflow)["permissions"] == {}
    for job in load(workflow)["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
    actions = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert len(actions) == 2
    assert [each for each in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each)] == []


def test_continuous_integration_runs_on_every_python_that_the_metadata_names() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    matrix = load(WORKFLOWS[0])["jobs"]["ci"]["strategy"]["matrix"]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert [each["os"].partition("-")[0] for each in matrix["include"]] == ["macos"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_the_recipe_that_a_person_runs(workflow: Path) -> None:
    (command,) = [step["run"] for step in steps(workflow) if "make" in step.get("run", "")]
    assert command.startswith("make ci ")


def test_the_citation_agrees_with_the_metadata() -> None:
    citation = load(REPOSITORY / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]


def test_every_hook_before_a_commit_is_a_command_of_the_environment() -> None:
    """So nothing is fetched, and people and continuous integration use the same versions."""
    (repository,) = load(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        command = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert command.startswith(".venv/bin/")
        assert (Path(sys.executable).parent / Path(command).name).is_file(), command
