"""Child process of the broker contract: reserves and settles as fast as it can until it is killed.

Run as `python -m kernel_worker.testing.reserving_process <JSON>`, see `broker_lease`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Reserve batches; acknowledge the first of each, after writing its id down, and put back the rest."""
    sys.path[:] = job["path"]
    from kernel_worker.drivers import BrokerContext
    from kernel_worker.types import QueueSpec, Settlement, Verdict

    module, _, name = job["driver"].partition(":")
    driver = getattr(importlib.import_module(module), name)
    queues = tuple(QueueSpec(name) for name in job["queues"])
    broker = driver(BrokerContext(job["url"], job["holder"], queues, lease_s=job["lease_s"], options=job["options"]))
    broker.connect()
    broker.declare(queues)
    ledger = os.open(job["ledger"], os.O_WRONLY | os.O_APPEND)
    sys.stdout.write("reserving\n")
    sys.stdout.flush()
    for turn in range(100_000):  # far more than fit before the kill
        batch = broker.fetch(5, 0.1)
        broker.renew(batch)
        verdicts = [Settlement(each, Verdict.REQUEUE) for each in batch]
        if verdicts and turn % 4 == 0:
            os.write(ledger, f"{batch[0].headers['id']}\n".encode())
            verdicts[0].verdict = Verdict.ACK
        broker.settle(verdicts)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
