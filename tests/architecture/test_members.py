"""Every distribution of the workspace has the same skeleton."""

from __future__ import annotations

import re

import pytest

from .source import ROOT, Member, members

MEMBERS = members()
KINDS = ("app", "broker", "pool", "result")


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.folder.name)
class TestMember:
    """One distribution."""

    def test_has_a_readme_that_says_what_it_is(self, member: Member) -> None:
        text = (member.folder / "README.md").read_text()

        assert text.startswith("# ")
        assert len(text.split()) >= 20
        assert member.project["project"]["name"] in text

    def test_describes_itself(self, member: Member) -> None:
        project = member.project["project"]

        assert project["description"]
        assert project["readme"] == "README.md"
        assert project["license"] == "BSD-3-Clause"
        assert project["requires-python"] == ">=3.11"
        assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
        assert member.project["build-system"] == {"requires": ["hatchling"], "build-backend": "hatchling.build"}

    def test_has_one_typed_package_in_src(self, member: Member) -> None:
        if member.source is None:
            assert member.project["tool"]["hatch"]["build"]["targets"]["wheel"]["bypass-selection"] is True
            return

        assert (member.source / "py.typed").exists()
        assert [path.name for path in (member.folder / "src").iterdir() if path.is_dir()] == [member.source.name]
        assert member.project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{member.source.name}"]

    def test_names_follow_the_folder(self, member: Member) -> None:
        name = member.project["project"]["name"]
        if member.folder == ROOT / "core":
            assert name == "kernel-worker-core"
            return

        folder = member.folder.name.removesuffix("_native")  # kernel-app is the application package itself
        assert name == f"kernel-{folder.replace('_', '-')}"
        assert member.source is None or member.source.name == name.replace("-", "_")

    def test_holds_nothing_but_its_own(self, member: Member) -> None:
        files = {path.name for path in member.folder.iterdir() if not path.name.startswith((".", "__"))}

        assert files <= {"pyproject.toml", "README.md", "src", "dist", "build", "hatch_build.py"}

    def test_modules_say_what_they_are(self, member: Member) -> None:
        if member.source is None:
            return
        silent = [
            str(file.relative_to(member.source))
            for file in sorted(member.source.rglob("*.py"))
            if not file.read_text().lstrip().startswith(('"""', 'r"""'))
        ]

        assert silent == []


def test_root_is_metadata_only_and_needs_members_of_this_workspace() -> None:
    names = {member.project["project"]["name"] for member in MEMBERS}
    import tomllib

    root = tomllib.loads((ROOT / "pyproject.toml").read_text())

    needed = {re.split(r"[\[<>=~! ]", text)[0] for text in root["project"]["dependencies"]}
    assert needed <= names
    assert root["tool"]["hatch"]["build"]["targets"]["wheel"]["bypass-selection"] is True
    assert root["tool"]["uv"]["workspace"]["members"] == ["core", "plugins/*"]
    assert needed <= set(root["tool"]["uv"]["sources"])
