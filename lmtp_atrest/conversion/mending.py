"""On request: sizes in names made right, damaged messages set aside. Each is looked at again."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from lmtp_atrest.conversion.verify import Fault, Report, look
from lmtp_atrest.crypto.dcrypt import Unwrap
from lmtp_atrest.errors import NotFound
from lmtp_atrest.maildir import Maildir, MessageFile
from lmtp_atrest.maildir.exchange import Subdirectories, Vanished
from lmtp_atrest.maildir.mending import QUARANTINE, correct_sizes, set_aside, with_right_sizes
from lmtp_atrest.maildir.names import base_of


def correct(maildir: Maildir, faults: Iterable[Fault]) -> int:
    """Give messages the sizes that were measured; how many got them. Raises StorageFailure."""
    done = 0
    for where, found in _folders(maildir, faults):
        wanted = {
            (fault.subdirectory, fault.name): with_right_sizes(base_of(fault.name), *fault.sizes)
            for fault in found
            if fault.sizes is not None
        }
        done += len(correct_sizes(where, wanted))
    return done


def quarantine(maildir: Maildir, faults: Iterable[Fault], unwrap: Unwrap) -> int:
    """Set messages aside that still have the same fault; how many. Raises StorageFailure."""
    done = 0
    faults = list(faults)
    if not faults:
        return done
    with _closing(maildir.make_folder(QUARANTINE)) as aside:
        for where, found in _folders(maildir, faults):
            for fault in found:
                with suppress(Vanished):
                    if _still(where, fault, unwrap):
                        set_aside(where, fault.subdirectory, fault.name, aside)
                        done += 1
    return done


def _folders(
    maildir: Maildir, faults: Iterable[Fault]
) -> Iterator[tuple[Subdirectories, list[Fault]]]:
    by_folder: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_folder[fault.folder].append(fault)
    for where in maildir.subdirectories():
        with _closing(where):
            if where.folder in by_folder:
                yield where, by_folder[where.folder]


def _still(where: Subdirectories, fault: Fault, unwrap: Unwrap) -> bool:
    """Whether it is as before: whoever wrote it may have ended since, or a conversion come by."""
    file = MessageFile(where.folder, "", fault.subdirectory, fault.name, where.new, where.cur)
    report = Report()
    with suppress(NotFound):
        look(file, unwrap, report)
    return [found.kind for found in report.faults] == [fault.kind]


@contextmanager
def _closing(where: Subdirectories) -> Iterator[Subdirectories]:
    try:
        yield where
    finally:
        where.close()
