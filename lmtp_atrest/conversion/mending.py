"""On request: sizes in names made right, damaged messages set aside. Each is looked at again."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress

from lmtp_atrest.conversion.verify import Fault, Report, look
from lmtp_atrest.crypto.dcrypt import Unwrap
from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir import Maildir, MessageFile
from lmtp_atrest.maildir.exchange import Subdirectories, Vanished
from lmtp_atrest.maildir.mending import (
    QUARANTINE,
    correct_sizes,
    set_aside,
    with_right_sizes,
)
from lmtp_atrest.maildir.names import base_of


def correct(maildir: Maildir, faults: Iterable[Fault]) -> int:
    """Give messages the sizes that were measured; how many got them. Raises StorageFailure."""
    done, by_folder = 0, _by_folder(faults)
    for where in maildir.subdirectories():
        with closing(where):
            wanted = {
                (f.subdirectory, f.name): with_right_sizes(base_of(f.name), *f.sizes)
                for f in by_folder.get(where.folder, ())
                if f.sizes is not None
            }
            if wanted:
                done += len(correct_sizes(where, wanted))
    return done


def quarantine(maildir: Maildir, faults: Iterable[Fault], unwrap: Unwrap) -> int:
    """Set messages aside that still have the same fault; how many. Raises StorageFailure."""
    done, by_folder = 0, _by_folder(faults)
    if not by_folder:
        return done
    with closing(maildir.make_folder(QUARANTINE)) as aside:
        for where in maildir.subdirectories():
            with closing(where):
                for fault in by_folder.get(where.folder, ()):
                    done += _set_aside(where, fault, unwrap, aside)
    return done


def _by_folder(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    found: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        found[fault.folder].append(fault)
    return found


def _set_aside(where: Subdirectories, fault: Fault, unwrap: Unwrap, aside: Subdirectories) -> bool:
    with suppress(Vanished):
        if _still(where, fault, unwrap):
            set_aside(where, fault.subdirectory, fault.name, aside)
            return True
    return False


def _still(where: Subdirectories, fault: Fault, unwrap: Unwrap) -> bool:
    """Whether it is as before: whoever wrote it may have ended since, or a conversion come by."""
    file = MessageFile(where.folder, "", fault.subdirectory, fault.name, where.new, where.cur)
    report = Report()
    with suppress(NotFound):
        look(file, unwrap, report)
    return [found.kind for found in report.faults] == [fault.kind]
