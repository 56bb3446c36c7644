"""Signatures: a call kept as data, to be sent later (wire-protocol §4 and §6).

A signature is a dict with Celery's keys, so those of Celery clients are handled alike. Single tasks, chains and
groups can be published; chords need a result backend that counts, and are refused visibly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .exceptions import ChordError, DecodeError
from .message import new_id
from .sending import OPTIONS

if TYPE_CHECKING:
    from .app import App
    from .results import AsyncResult

MOST_MEMBERS = 100_000
"""Members one embedded group may have; more are refused, so that one message cannot fill a broker."""


class Signature(dict[str, Any]):
    """One call of one task: name, arguments, publish options. Made by `task.s()` and `task.si()`.

    Arguments given when it is called go before its own; one that is immutable ignores them.
    """

    def __init__(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        app: App,
    ) -> None:
        super().__init__(
            task=task,
            args=list(args),
            kwargs=dict(kwargs or {}),
            options=dict(options or {}),
            subtask_type=None,
            immutable=immutable,
        )
        self._app = app

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send it. Arguments and options are put before and over its own."""
        return publish(self._app, self, args or (), kwargs or {}, options)[0]

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send it with further arguments."""
        return self.apply_async(args, kwargs)

    def set(self, immutable: bool | None = None, **options: Any) -> Signature:
        """Set publish options; returns itself."""
        if immutable is not None:
            self["immutable"] = immutable
        self["options"].update(options)
        return self

    def clone(self) -> Signature:
        """An independent copy."""
        copy = Signature(
            self["task"], self["args"], self["kwargs"], self["options"], immutable=self["immutable"], app=self._app
        )
        for name in ("link", "link_error"):
            if name in copy["options"]:
                copy["options"][name] = list(copy["options"][name])
        return copy

    def link(self, callback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run `callback` with the result when it succeeds; returns the callback."""
        self["options"].setdefault("link", []).append(callback)
        return callback

    def link_error(self, errback: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run `errback` when it fails; returns the errback."""
        self["options"].setdefault("link_error", []).append(errback)
        return errback

    def on_error(self, errback: Mapping[str, Any]) -> Signature:
        """As `link_error`, and returns itself."""
        self.link_error(errback)
        return self

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self["task"])

    @property
    def id(self) -> str | None:
        """The id it will be sent with, if one is chosen already."""
        chosen: str | None = self["options"].get("task_id")
        return chosen

    def __repr__(self) -> str:
        return f"<Signature of {self['task']}>"


def publish(
    app: App,
    signature: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[AsyncResult[Any]]:
    """Send what a signature stands for: one task, the first of a chain, or all of a group.

    :param signature: ours or one that came in a message: anything may be wrong with it.
    :param args: put before the signature's own, unless it is immutable.
    :param options: put over the signature's own.
    :return: the results of what was sent; for a chain that of its last task.
    :raises ChordError: it is a chord, or holds one where it would have to be counted.
    :raises DecodeError: it is no signature.
    :raises OperationalError: the broker cannot be reached.
    """
    name, own_args, own_kwargs, own_options = _parts(signature)
    if signature.get("immutable"):
        args, kwargs = (), {}
    kind = signature.get("subtask_type")
    if kind == "chord":
        raise ChordError("chords are not supported by this worker: their parts would not be counted")
    merged = {**own_options, **{key: value for key, value in options.items() if value is not None}}
    if kind == "chain":
        return _publish_chain(app, own_kwargs.get("tasks"), args, kwargs, merged)
    if kind == "group":
        return _publish_group(app, own_kwargs.get("tasks"), args, kwargs, merged)
    return [app.send_task(name, (*args, *own_args), {**own_kwargs, **kwargs}, **merged)]


def _parts(signature: Any) -> tuple[str, Sequence[Any], Mapping[str, Any], dict[str, Any]]:
    if not isinstance(signature, Mapping):
        raise DecodeError(f"a signature is an object, not {type(signature).__name__}")
    name, args = signature.get("task"), signature.get("args") or ()
    kwargs, options = signature.get("kwargs") or {}, signature.get("options") or {}
    if not isinstance(name, str) or not isinstance(args, (list, tuple)):
        raise DecodeError("a signature without a task's name, or whose args are no list")
    if not isinstance(kwargs, Mapping) or not isinstance(options, Mapping):
        raise DecodeError("a signature whose kwargs or options are no object")
    stamps = options.get("stamped_headers") or ()
    # What this version does not know is left out, not handed on: a sender must not reach other parameters.
    return name, args, kwargs, {key: value for key, value in options.items() if key in OPTIONS or key in stamps}


def task_ids(*signatures: Any) -> list[str]:
    """Ids of the tasks that signatures stand for, members of composites included: somebody may wait for any of them.

    Whatever is wrong with a signature, and what lies beyond `MOST_MEMBERS` parts, is passed over.
    """
    found: dict[str, None] = {}
    left = deque(signatures)
    for _ in range(MOST_MEMBERS):
        if not left:
            break
        part = left.popleft()
        if isinstance(part, (list, tuple)):
            left += part
        if not isinstance(part, Mapping):
            continue
        options, kwargs = part.get("options"), part.get("kwargs")
        task_id = options.get("task_id") if isinstance(options, Mapping) else None
        if isinstance(task_id, str) and task_id:
            found[task_id] = None
        if part.get("subtask_type") in ("chain", "group", "chord") and isinstance(kwargs, Mapping):
            left += [kwargs.get("tasks"), kwargs.get("header"), kwargs.get("body")]
    return list(found)


def _members(tasks: Any) -> list[Any]:
    if not isinstance(tasks, (list, tuple)) or not tasks:
        raise DecodeError("a chain or group without members")
    if len(tasks) > MOST_MEMBERS:
        raise DecodeError(f"a group of more than {MOST_MEMBERS} members")
    return list(tasks)


def _with_options(signature: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    _, _, _, own = _parts(signature)
    return {**signature, "options": {**own, **options}}


def _linked(options: Mapping[str, Any], more: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The links of a composite, added to those of one member."""
    found = {}
    for name in names:
        links = [*_list(options.get(name)), *_list(more.get(name))]
        if links:
            found[name] = links
    return found


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _publish_chain(
    app: App, tasks: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> list[AsyncResult[Any]]:
    # The first member is sent with the others in `chain`, last first (wire-protocol §4). What was asked of the
    # chain holds for its last member; errbacks hold for each.
    members = [_with_options(m, _linked(_parts(m)[3], options, ("link_error",))) for m in _members(tasks)]
    last = members[-1]["options"]
    last.update(_linked(last, options, ("link",)))
    last.update({key: options[key] for key in ("task_id", "group_id", "group_index", "chord") if key in options})
    for member in members:
        member["options"].setdefault("task_id", new_id())
    rest = [*_list(options.get("chain")), *reversed(members[1:])]
    shared = {key: options[key] for key in ("root_id", "parent_id", "priority", "queue") if key in options}
    publish(app, members[0], args, kwargs, {**shared, "chain": rest or None})
    return [app.AsyncResult(last["task_id"])]


def _publish_group(
    app: App, tasks: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> list[AsyncResult[Any]]:
    members = _members(tasks)
    if options.get("chain") or options.get("chord"):
        raise ChordError("a group that something follows is a chord, which this worker does not support")
    group_id = options.get("task_id") or new_id()
    shared = {key: options[key] for key in ("root_id", "parent_id", "priority", "queue") if key in options}
    results: list[AsyncResult[Any]] = []
    for index, member in enumerate(members):
        linked = _linked(_parts(member)[3], options, ("link", "link_error"))
        results += publish(app, member, args, kwargs, {**shared, **linked, "group_id": group_id, "group_index": index})
    return results
