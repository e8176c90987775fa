"""Whether people may be encrypted with no administrator there: what `account enable` asks."""

from lmtp_atrest.config import Config
from lmtp_atrest.doctor import refusals
from lmtp_atrest.doctor.facts import collect
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.telemetry import logger

log = logger("doctor")


def suitable(config: Config) -> Config:
    """The configuration, without enrolment at login or in the portal where `account enable` would
    refuse.

    Looked at when the services start, as root: the unlock service may not look at Dovecot's
    settings. What cannot be looked at is not taken for good.
    """
    otherwise = "closed" if config.portal.listen is not None else "self-service"
    if config.atrest.enrolment in ("closed", otherwise):
        return config
    try:
        reasons = [found.name for found in refusals(collect(config))]
    except (AtRestError, OSError) as error:
        reasons = [str(error)]
    if not reasons:
        return config
    log.error("nobody enrols without an administrator: see lmtp-atrest doctor", reasons=reasons)
    atrest = config.atrest.model_copy(update={"enrolment": otherwise})
    return config.model_copy(update={"atrest": atrest})
