"""Commands about the queues a worker consumes from."""

from __future__ import annotations

from typing import Any

from kernel_worker import ControlContext, Permission, QueueSpec, control_command

_MAX_NAME = 255


@control_command()
def active_queues(context: ControlContext) -> list[dict[str, Any]]:
    """The queues consumed from."""
    return [_described(spec) for spec in context.operations.queues]


def _described(spec: QueueSpec) -> dict[str, Any]:
    """As kombu's Queue.as_dict."""
    exchange = {
        "name": spec.exchange or spec.name,
        "type": spec.exchange_type,
        "arguments": None,
        "durable": True,
        "passive": False,
        "auto_delete": False,
        "delivery_mode": None,
        "no_declare": False,
    }
    return {
        "name": spec.name,
        "exchange": exchange,
        "routing_key": spec.routing_key or spec.name,
        "queue_arguments": dict(spec.arguments) or None,
        "binding_arguments": None,
        "consumer_arguments": None,
        "durable": True,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "alias": None,
        "bindings": [],
        "no_declare": None,
        "expires": None,
        "message_ttl": None,
        "max_length": None,
        "max_length_bytes": None,
        "max_priority": spec.arguments.get("x-max-priority"),
    }


@control_command(
    permission=Permission.OPERATE, args={"queue": str, "exchange": str, "exchange_type": str, "routing_key": str}
)
def add_consumer(
    context: ControlContext,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
) -> dict[str, str]:
    """Consume from one more queue."""
    for text in (queue, exchange, exchange_type, routing_key):
        if text is not None and len(text) > _MAX_NAME:
            raise ValueError(f"a name has at most {_MAX_NAME} characters")
    if not queue:
        raise ValueError("a queue has a name")
    spec = QueueSpec(queue, exchange or "", exchange_type or "direct", routing_key or "")
    context.operations.add_queue(spec)
    return {"ok": f"add consumer {queue}"}


@control_command(permission=Permission.OPERATE, args={"queue": str})
def cancel_consumer(context: ControlContext, queue: str) -> dict[str, str]:
    """Take nothing more from a queue."""
    context.operations.cancel_queue(queue)
    return {"ok": f"no longer consuming from {queue}"}


@control_command(permission=Permission.OPERATE, args={"queue": str})
def pause(context: ControlContext, queue: str) -> dict[str, str]:
    """Take nothing from a queue until it is resumed."""
    return {"ok": f"paused: {', '.join(context.operations.pause([queue]))}"}


@control_command(permission=Permission.OPERATE, args={"queue": str})
def resume(context: ControlContext, queue: str | None = None) -> dict[str, str]:
    """Consume from a paused queue again; without a name, from all."""
    return {"ok": f"consuming from: {', '.join(context.operations.resume([queue] if queue else ()))}"}


@control_command(permission=Permission.OPERATE)
def drain(context: ControlContext) -> dict[str, str]:
    """Finish what was received and take nothing more, until `resume`."""
    return {"ok": f"draining; paused: {', '.join(context.operations.pause())}"}
