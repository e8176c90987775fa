"""Whether everybody may be encrypted at login here: what `account enable` asks, for all."""

from lmtp_atrest.config import Config
from lmtp_atrest.doctor import refusals
from lmtp_atrest.doctor.facts import collect
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.telemetry import logger

log = logger("doctor")


def suitable(config: Config) -> Config:
    """The configuration, without enrolment at login where `account enable` would refuse.

    Looked at when the services start, as root: the unlock service may not look at Dovecot's
    settings. What cannot be looked at is not taken for good.
    """
    if config.atrest.enrolment != "at-login":
        return config
    try:
        reasons = [found.name for found in refusals(collect(config))]
    except (AtRestError, OSError) as error:
        reasons = [str(error)]
    if not reasons:
        return config
    log.error("nobody is enrolled at login: see lmtp-atrest doctor", reasons=reasons)
    atrest = config.atrest.model_copy(update={"enrolment": "self-service"})
    return config.model_copy(update={"atrest": atrest})
