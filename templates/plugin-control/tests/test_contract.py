"""The control command contract, held against `@name@`."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_control_@name@ import command as the_command
from kernel_worker import ControlCommand
from kernel_worker.testing import ControlContract


class Test@Name@Command(ControlContract):
    @pytest.fixture
    def command(self) -> ControlCommand:
        return the_command

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        return {"text": "well?"}

    def test_long_text_is_refused(self, command: ControlCommand) -> None:
        with pytest.raises(ValueError, match="at most"):
            command.handler(None, text="x" * 1000)
