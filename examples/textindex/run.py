"""The client: send one task per file, gather the results, print a table. A worker must be running:

kw run -A examples.textindex.app
python -m examples.textindex.run [FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .app import app, index_file
from .files import standard_library, text_files
from .progress import Progress
from .summary import Summary


def index_tree(folder: Path, limit: int | None = None, timeout_s: float = 60.0) -> tuple[Summary, float]:
    """Index all text files below `folder`.

    :param timeout_s: give up when no further result comes for so long.
    :return: the totals, and the seconds from the first send to the last result.
    :raises TimeoutError: no worker finishes the tasks.
    """
    paths = list(text_files(folder))[:limit]
    summary = Summary()
    began = time.monotonic()
    with Progress("sent   ", len(paths)) as progress:
        pending = []
        for path in paths:
            pending.append((path, index_file.delay(str(path))))
            progress.advance()
    with Progress("indexed", len(paths)) as progress:
        for path, result in pending:
            index = result.get(timeout=timeout_s, propagate=False)
            if isinstance(index, BaseException):  # the task failed; `get` gives what it raised
                summary.failures.append(str(index))
            else:
                summary.add(path, index)
            progress.advance()
    return summary, time.monotonic() - began


def main() -> None:
    """Command line of the client."""
    parser = argparse.ArgumentParser(prog="python -m examples.textindex.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=standard_library(), help="default: Python's own sources"
    )
    parser.add_argument("-b", "--broker", metavar="URL", help="default: kw.db in this folder, as for `kw run`")
    parser.add_argument("--result-backend", metavar="URL", help="default: the same as --broker")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N files")
    arguments = parser.parse_args()
    if arguments.broker:
        app.conf.update(broker_url=arguments.broker, result_backend=arguments.result_backend or arguments.broker)
    folder = arguments.folder.resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    try:
        summary, elapsed_s = index_tree(folder, arguments.limit)
    except TimeoutError:
        sys.exit("no result came for 60 s: is a worker running?\n    kw run -A examples.textindex.app")
    except KeyboardInterrupt:
        sys.exit(130)
    if not summary.files and not summary.failures:
        sys.exit(f"{folder} holds no text files")
    print(summary.table(folder, elapsed_s))
    sys.exit(1 if summary.failures else 0)


if __name__ == "__main__":
    main()
