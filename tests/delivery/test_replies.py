import errno

import pytest

from lmtp_atrest import errors
from lmtp_atrest.delivery import replies
from lmtp_atrest.delivery.recipients import Changed, NoValidKey
from lmtp_atrest.delivery.replies import Refused, Reply, reply_for
from lmtp_atrest.maildir import DiskFull, OverQuota, StorageFailure, UnsafePath

PERMANENT_ONLY_BY_NAME = replies.NO_SUCH_RECIPIENT


def caused(error: Exception, number: int) -> Exception:
    error.__cause__ = OSError(number, "text")
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.TemporaryFailure("/path"), "451 4.3.0"),
        (errors.Alarm("/path"), "451 4.7.5"),
        (NoValidKey("/path"), "451 4.7.5"),
        (errors.NotFound("/path"), "451 4.3.0"),
        (errors.Damaged("/path"), "451 4.3.0"),
        (errors.Conflict("/path"), "451 4.3.0"),
        (errors.WrongState("/path"), "451 4.3.0"),
        (errors.Busy("/path"), "451 4.3.0"),
        (errors.UsageError("/path"), "451 4.3.0"),
        (errors.ConfigError(["/path"]), "451 4.3.0"),
        (errors.WrongSecret("/path"), "451 4.3.0"),
        (Changed("/path"), "451 4.3.0"),
        (caused(DiskFull("/path"), errno.ENOSPC), "452 4.3.1"),
        (caused(OverQuota("/path"), errno.EDQUOT), "452 4.2.2"),
        (caused(StorageFailure("/path"), errno.EIO), "451 4.3.0"),
        (caused(UnsafePath("/path"), errno.ELOOP), "451 4.3.0"),
        (OSError(errno.ENOSPC, "/path"), "452 4.3.1"),
        (OSError(errno.EDQUOT, "/path"), "452 4.2.2"),
        (OSError(errno.EROFS, "/path"), "451 4.3.0"),
        (OSError(errno.EMFILE, "/path"), "451 4.3.0"),
        (MemoryError("/path"), "451 4.3.0"),
        (TimeoutError("/path"), "451 4.3.0"),
        (KeyError("/path"), "451 4.3.0"),
        (Exception("550 5.1.1 /path"), "451 4.3.0"),
        (Refused(PERMANENT_ONLY_BY_NAME), "550 5.1.1"),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "errno", "")),
)
def test_each_kind_of_trouble_has_its_reply(error: Exception, expected: str) -> None:
    reply = str(reply_for(error))
    assert reply.startswith(expected)
    assert "/path" not in reply


def test_every_reply_has_matching_codes() -> None:
    named = [value for value in vars(replies).values() if isinstance(value, Reply)]
    assert len(named) > 25
    for reply in named:
        assert reply.code == 354 or reply.enhanced[0] == str(reply.code)[0], reply
