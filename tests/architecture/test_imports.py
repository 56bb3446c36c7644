"""Who may import whom. Read from the source, so that a forbidden import fails even where it is never run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .source import CORE, Import, Member, imports, members, package_of

LIBRARIES = {"pluggy", "stevedore", "click"}
LEAVES = ("types", "errors", "loop", "wire", "settle", "steps", "bus")
"""Rooms that know no other room, but the words all share: `types` and `errors`."""
CONTRACT = {"types", "errors", "drivers", "options", "hookspecs", "hookspecs_executor", "testing"}
"""Rooms whose public names a plugin may import from the room itself."""
RECORDS = {
    "steps": {"Bootstep"},
    "registry": {"Command", "HealthCheck"},
    "bus": {"Bus", "Kind"},
    "control": {"NO_REPLY", "Pending"},
}
"""What hooks take or return and lives in another room."""
EXECUTOR_KIT = {
    "board",
    "executor",
    "executor_main",
    "interrupting",
    "loading",
    "logs",
    "loop",
    "process_state",
    "spawn",
    "wire",
}
"""Rooms a pool may build on that starts executors in its own way."""
NEEDS_NO_WORKER = ("kernel_app", "kernel_result_redis", "kernel_result_sqlite")

MODULES = sorted(path for path in CORE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The first part of a module's place in the kernel: `loop`, `cli`, `testing`."""
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def found(file: Path) -> list[Import]:
    return imports(file, package_of(file, CORE))


@pytest.mark.parametrize("file", MODULES, ids=[str(path.relative_to(CORE)) for path in MODULES])
def test_kernel_imports_only_the_standard_library_and_its_three_libraries(file: Path) -> None:
    allowed = set(sys.stdlib_module_names) | LIBRARIES | {"kernel_worker"}
    if room_of(file) == "testing":
        allowed |= {"pytest"}

    strange = [f"line {each.line}: {each.module}" for each in found(file) if each.top not in allowed]

    assert not strange


def test_each_library_is_used_in_its_rooms_only() -> None:
    rooms = {
        "click": {"cli"},
        "stevedore": {"registry"},
        "pluggy": {"hooks", "hookspecs", "hookspecs_executor", "executor_main"},
    }

    strange = [
        f"{file.relative_to(CORE)}: {each.module}"
        for file in MODULES
        for each in found(file)
        if each.top in rooms and room_of(file) not in rooms[each.top]
    ]

    assert not strange


@pytest.mark.parametrize("room", LEAVES)
def test_leaf_knows_no_room_but_types_and_errors(room: str) -> None:
    known = {each.module for each in found(CORE / f"{room}.py") if each.top == "kernel_worker"}

    assert known <= {"kernel_worker.types", "kernel_worker.errors"}


@pytest.mark.parametrize("room", ["types", "errors"])
def test_words_all_share_import_nothing_of_the_kernel(room: str) -> None:
    assert not [each for each in found(CORE / f"{room}.py") if each.top == "kernel_worker"]


def test_executor_knows_nothing_of_the_kernel_process() -> None:
    forbidden = {"worker", "dispatcher", "supervisor", "registry", "broker_host", "selection", "cli", "hooks", "config"}

    assert (
        not _rooms_reached(
            "executor_main",
            {"executor", "loading", "minder", "reporting", "board", "drivers", "types", "wire", "errors"},
        )
        & forbidden
    )


def test_no_room_imports_the_command_line_or_the_test_suites() -> None:
    strange = [
        f"{file.relative_to(CORE)}: {each.module}"
        for file in MODULES
        for each in found(file)
        if each.module.startswith(("kernel_worker.cli", "kernel_worker.testing"))
        and room_of(file) != each.module.split(".")[1]
    ]

    assert not strange


PLUGINS = [member for member in members() if member.source is not None and member.source != CORE]


@pytest.mark.parametrize("member", PLUGINS, ids=lambda member: member.folder.name)
def test_plugin_imports_only_public_names_of_the_kernel(member: Member) -> None:
    import kernel_worker

    source = member.source
    assert source is not None
    strange = []
    for file in sorted(source.rglob("*.py")):
        for each in imports(file, package_of(file, source)):
            if each.top != "kernel_worker":
                continue
            room = each.module.partition(".")[2].partition(".")[0]
            if not room:
                private = set(each.names) - set(kernel_worker.__all__)
            elif room in CONTRACT or (room in EXECUTOR_KIT and member.folder.name.startswith("pool_")):
                private = {name for name in each.names if name.startswith("_")}
            else:
                private = set(each.names) - RECORDS.get(room, set())
            strange += [f"{file.name} line {each.line}: {each.module}.{name}" for name in sorted(private)]

    assert not strange


@pytest.mark.parametrize("member", PLUGINS, ids=lambda member: member.folder.name)
def test_plugin_imports_no_other_plugin_that_it_does_not_depend_on(member: Member) -> None:
    source = member.source
    assert source is not None
    needed = {text.partition(">")[0].strip().replace("-", "_") for text in member.project["project"]["dependencies"]}
    strange = {
        f"{file.name}: {each.module}"
        for file in source.rglob("*.py")
        for each in imports(file, package_of(file, source))
        if each.top.startswith("kernel_") and each.top not in {source.name, "kernel_worker"} | needed
    }

    assert not strange


@pytest.mark.parametrize("package", NEEDS_NO_WORKER)
def test_client_side_loads_nothing_of_the_worker(package: str) -> None:
    assert not _loaded_by(f"import {package}", "kernel_worker")


@pytest.mark.parametrize("library", ["pluggy", "stevedore", "click", "pytest", "kombu", "asyncio"])
def test_executor_loads_no_library_it_does_not_need(library: str) -> None:
    """Its memory is paid once per child, its imports with every start."""
    assert not _loaded_by("import kernel_worker.executor_main", library)


@pytest.mark.parametrize("library", ["kombu", "redis", "msgspec", "pytest"])
def test_kernel_loads_no_library_of_a_driver(library: str) -> None:
    assert not _loaded_by("import kernel_worker.worker, kernel_worker.builtin, kernel_worker.cli.run", library)


def test_testing_ledger_and_messages_load_without_pytest() -> None:
    assert not _loaded_by("from kernel_worker.testing import Ledger, envelope, eventually", "pytest")


def _loaded_by(statement: str, package: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint([m for m in sys.modules if m.partition('.')[0] == {package!r}])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names: list[str] = [name for name in run.stdout.strip("[]\n").replace("'", "").split(", ") if name]
    return names


def _rooms_reached(room: str, through: set[str]) -> set[str]:
    """Rooms that `room` imports, itself or by way of the rooms in `through`."""
    reached: set[str] = set()
    todo = [room]
    while todo:
        for each in found(CORE / f"{todo.pop()}.py"):
            if each.top != "kernel_worker":
                continue
            named = each.module.split(".")[1:2] or [name for name in each.names if (CORE / f"{name}.py").exists()]
            todo += [name for name in named if name in through - reached]
            reached.update(named)
    return reached
