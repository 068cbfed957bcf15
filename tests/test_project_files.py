"""What a repository is found and used by: citation, workflows, templates, addresses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_is_whole() -> None:
    cited = _read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what version 1.2.0 of the format asks for
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert all({"name", "family-names"} & set(author) for author in cited["authors"])
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Repository"]
    assert cited["url"] == PROJECT["urls"]["Documentation"]


def test_addresses_are_of_one_repository() -> None:
    repository = PROJECT["urls"]["Repository"]
    owner, name = repository.removeprefix("https://github.com/").split("/")
    files = [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.*"), ROOT / "CITATION.cff", ROOT / "mkdocs.yml"]
    for path in files:
        for found in re.findall(r"https://github\.com/[\w.-]*secateur[\w./-]*", path.read_text(encoding="utf-8")):
            assert f"{found}/".startswith(f"{repository}/"), path
    assert PROJECT["urls"]["Documentation"] == f"https://{owner}.github.io/{name}/"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_there_is(path: Path) -> None:
    found = _read(path)
    assert {"name", True, "permissions", "jobs"} <= set(found)  # YAML 1.1 reads `on` as true
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in found["jobs"].values():
        assert "runs-on" in job
        assert set(job.get("needs", "").split()) <= set(found["jobs"])
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            words = shlex.split(step.get("run", ""))
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= made


def test_releases_are_published_without_a_password() -> None:
    job = _read(ROOT / ".github/workflows/publish.yml")["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["environment"]["name"] == "pypi"
    assert job["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in job["steps"][-1]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_something(path: Path) -> None:
    form = _read(path)
    assert {"name", "description", "body"} <= set(form)
    assert any(part.get("validations", {}).get("required") for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_there_is_a_file_for_whoever_asks() -> None:
    for name in ("CODE_OF_CONDUCT.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        assert (ROOT / name).stat().st_size > 500
    assert "## Versions and deprecation" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
