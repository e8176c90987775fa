"""Guessing is slow, and making somebody wait is not a weapon.

Two rules for secrets that nobody but us checks (`open`); a login that the site already verified
is no guess and never comes here.

* Per account and source: two wrong secrets cost nothing, each further one lengthens the gap to the
  next try, up to 15 s. So one source has four tries a minute, and its owner waits 15 s at most. A
  trusted source (a webmail host that stands for all its users) waits 1 s at most.
* Per account: so many wrong secrets an hour may cost an Argon2id run, counted apart for trusted
  hosts and for strangers, so that neither uses up the other's share. A source that opened this
  account before is exempt: the owner's devices are not shut out by strangers, however many.

An open vault compares the right secret without Argon2id, so only the first rule stands before it.
Nothing here sleeps; a refusal says after how many seconds another try counts.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from lmtp_atrest.errors import Busy

GAPS = (0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # after so many wrong secrets
TRUSTED_GAP = 1.0
FORGET_SECONDS = 900.0
# Together at most 100 wrong secrets in any hour and account (ASVS 4, 2.2.1): a full bucket and
# what flows in during the hour are one half each.
STRANGER_TRIES = 60
TRUSTED_TRIES = 40
HOUR = 3600.0
SOURCES_LIMIT = 100_000
ACCOUNTS_LIMIT = 20_000
KNOWN_SOURCES = 32


@dataclass(slots=True)
class _Source:
    """One source's wrong tries at one account."""

    failures: int
    last: float


@dataclass(slots=True)
class _Bucket:
    """Tries left, refilled at `capacity` an hour."""

    capacity: float
    left: float
    since: float

    def take(self, now: float) -> float:
        """Take one try; else the seconds until there is one again."""
        rate = self.capacity / HOUR
        self.left = min(self.capacity, self.left + (now - self.since) * rate)
        self.since = now
        if self.left < 1.0:
            return (1.0 - self.left) / rate
        self.left -= 1.0
        return 0.0


@dataclass(slots=True)
class _Account:
    """What is remembered of an account."""

    buckets: dict[bool, _Bucket] = field(default_factory=dict)
    known: OrderedDict[str, None] = field(default_factory=OrderedDict)


class Guessing:
    """Counts wrong secrets. `now` is monotonic seconds; bounded in memory, lost at a restart."""

    def __init__(self, trusted_sources: Collection[str] = ()) -> None:
        self._trusted = frozenset(trusted_sources)
        self._sources: OrderedDict[tuple[str, str], _Source] = OrderedDict()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def check_source(self, account_id: str, source: str, now: float) -> None:
        """Busy while this source has to wait before its next try at this account."""
        seen = self._sources.get((account_id, source))
        if seen is None or now - seen.last > FORGET_SECONDS:
            return
        gap = GAPS[min(seen.failures, len(GAPS) - 1)]
        if source in self._trusted:
            gap = min(gap, TRUSTED_GAP)
        if now < seen.last + gap:
            message = "this source has to wait between wrong secrets"
            raise Busy(message, seen.last + gap - now)

    def begin(self, account_id: str, source: str, now: float) -> None:
        """Count a try before it runs, so that tries side by side are counted too.

        Busy when the account's share is used up; that counts for the source all the same.
        """
        self._count(account_id, source, now)
        account = self._account(account_id)
        trusted = source in self._trusted
        if source in account.known and not trusted:
            account.known.move_to_end(source)
            return
        capacity = (TRUSTED_TRIES if trusted else STRANGER_TRIES) / 2
        bucket = account.buckets.setdefault(trusted, _Bucket(capacity, capacity, now))
        if wait := bucket.take(now):
            message = "too many wrong secrets for this account"
            raise Busy(message, wait)

    def withdraw(self, account_id: str, source: str) -> None:
        """The try did not run after all: the secret was neither right nor wrong."""
        if seen := self._sources.get((account_id, source)):
            seen.failures -= 1
        self._refund(account_id, source)

    def succeeded(self, account_id: str, source: str, *, counted: bool = True) -> None:
        """The secret was right: forget the source's errors and know it from now on.

        `counted` says whether `begin` counted this try.
        """
        self._sources.pop((account_id, source), None)
        if counted:
            self._refund(account_id, source)
        known = self._account(account_id).known
        known[source] = None
        known.move_to_end(source)
        if len(known) > KNOWN_SOURCES:
            known.popitem(last=False)

    def _count(self, account_id: str, source: str, now: float) -> None:
        seen = self._sources.pop((account_id, source), None)
        if seen is None or now - seen.last > FORGET_SECONDS:
            seen = _Source(0, now)
        seen.failures, seen.last = seen.failures + 1, now
        self._sources[account_id, source] = seen
        if len(self._sources) > SOURCES_LIMIT:
            self._sources.popitem(last=False)

    def _refund(self, account_id: str, source: str) -> None:
        trusted = source in self._trusted
        account = self._account(account_id)
        if (bucket := account.buckets.get(trusted)) and (trusted or source not in account.known):
            bucket.left = min(bucket.capacity, bucket.left + 1.0)

    def _account(self, account_id: str) -> _Account:
        account = self._accounts.setdefault(account_id, _Account())
        self._accounts.move_to_end(account_id)
        if len(self._accounts) > ACCOUNTS_LIMIT:
            self._accounts.popitem(last=False)
        return account
