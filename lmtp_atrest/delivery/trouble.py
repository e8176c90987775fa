"""How trouble with a recipient or message reaches the operator: alarms, known trouble, bugs."""

from typing import Any

from lmtp_atrest import telemetry
from lmtp_atrest.errors import Alarm, AtRestError


def report(component: str, event: str, error: BaseException, **fields: Any) -> None:
    """One line for the log; a trace only for what nobody expected. Never content."""
    if isinstance(error, Alarm):
        telemetry.alarm(component, event, cause=str(error), **fields)
    elif isinstance(error, AtRestError | OSError):
        telemetry.logger(component).warning(event, cause=str(error), **fields)
    else:
        telemetry.logger(component).error(event, exc_info=error, **fields)
