"""Open vaults: vault keys in memory, for as long as their sessions may last.

An open vault holds the vault key and nothing else that is secret; private keys are unsealed per
request elsewhere. It ends by idle time, age, `lock`, a changed account record, and the end of the
process. The right secret is recognised again by a keyed hash, so that a second login costs no
Argon2id; the hash lives and dies with the vault. Wrong secrets are remembered the same way for
some minutes. No input and output here; `now` is monotonic seconds.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.crypto.vault import VaultKey
from lmtp_atrest.errors import NotFound
from lmtp_atrest.secret import Secret

TOKENS_LIMIT = 1000  # per vault; the oldest goes, its reader opens again
TOKEN_BYTES = 32
WRONG_SECONDS = 600.0
WRONG_LIMIT = 20_000


class NoSession(NotFound):
    """The token is unknown, has ended, or belongs to another peer; nobody learns which."""

    public = "no such session"


class Recogniser:
    """Tells whether a secret was seen before, for this state of this account, in this process."""

    def __init__(self) -> None:
        self._key = Secret(secrets.token_bytes(32))

    def pseudonym(self, name: str) -> str:
        """A stand-in for the account id of a name that has no account."""
        raw = name.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(raw, key=self._key.reveal(), digest_size=16).hexdigest()

    def mark(
        self, record: AccountRecord, secret: Secret, kind: SlotKind = SlotKind.PASSWORD
    ) -> bytes:
        """A keyed hash of the secret, bound to account, vault, slots, epoch and kind of slot."""
        state = (
            f"{record.account_id} {record.vault_id} {record.slots_digest.hex()} {record.epoch} "
            f"{kind} "
        )
        return hashlib.blake2b(
            state.encode() + secret.reveal(), key=self._key.reveal(), digest_size=32
        ).digest()


@dataclass(slots=True, eq=False)
class OpenVault:
    """One account's vault key in memory."""

    account_id: str
    names: tuple[str, ...]
    epoch: int
    vault_key: VaultKey
    opened: float
    used: float
    source: str
    right: set[bytes] = field(default_factory=set, repr=False)
    pending: set[bytes] = field(default_factory=set, repr=False)
    tokens: OrderedDict[str, int] = field(default_factory=OrderedDict, repr=False)

    def recognises(self, mark: bytes, *, verified: bool = False) -> bool:
        """True for the mark of a secret that opened this vault.

        Not for one of a pending slot, once the site has `verified` it: that settles a change.
        """
        known = any(hmac.compare_digest(mark, known) for known in self.right)
        return known and not (verified and mark in self.pending)


class OpenVaults:
    """All open vaults of the process, at most one per account."""

    def __init__(self, idle_seconds: float, age_seconds: float) -> None:
        self._idle = idle_seconds
        self._age = age_seconds
        self._open: dict[str, OpenVault] = {}
        self._tokens: dict[str, OpenVault] = {}

    def __len__(self) -> int:
        return len(self._open)

    def listed(self, now: float) -> list[OpenVault]:
        """The open vaults, oldest first."""
        still = (vault for vault in self._open.values() if not self._expired(vault, now))
        return sorted(still, key=lambda vault: vault.opened)

    def current(self, record: AccountRecord, now: float) -> OpenVault | None:
        """The account's open vault, closed first if the record or the time says so.

        `record` was read from the primary store for this use.
        """
        vault = self._open.get(record.account_id)
        if vault is None:
            return None
        if not record.holds_ciphertext or vault.epoch != record.epoch or self._expired(vault, now):
            self.close(record.account_id)
            return None
        return vault

    def is_open(self, account_id: str, now: float) -> bool:
        """True while the account has an open vault, whatever its record says by now."""
        vault = self._open.get(account_id)
        return vault is not None and not self._expired(vault, now)

    def use(self, vault: OpenVault, now: float) -> None:
        """Note that somebody was there."""
        vault.used = now

    def put(
        self,
        record: AccountRecord,
        vault_key: VaultKey,
        mark: bytes,
        source: str,
        now: float,
        *,
        pending: bool = False,
    ) -> OpenVault:
        """Keep what a secret opened: a new open vault, or one more secret that opens this one.

        `pending` says that the secret waits for the site's word.
        """
        vault = self.current(record, now)
        if vault is None:
            vault = OpenVault(
                account_id=record.account_id,
                names=record.names,
                epoch=record.epoch,
                vault_key=vault_key,
                opened=now,
                used=now,
                source=source,
            )
            self._open[record.account_id] = vault
        vault.right.add(mark)
        if pending:
            vault.pending.add(mark)
        return vault

    def issue(self, vault: OpenVault, uid: int) -> str:
        """A new token for this vault, good for the peer's uid only."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        vault.tokens[token] = uid
        self._tokens[token] = vault
        if len(vault.tokens) > TOKENS_LIMIT:
            self._tokens.pop(vault.tokens.popitem(last=False)[0], None)
        return token

    def by_token(self, token: str, uid: int, now: float) -> OpenVault:
        """The vault of a token; NoSession unless it was issued to this uid and is still open.

        The caller reads the account's record and asks `current` before using it.
        """
        vault = self._tokens.get(token)
        if vault is not None and self._expired(vault, now):
            self.close(vault.account_id)
        elif vault is not None and vault.tokens[token] == uid:
            return vault
        message = "no such session"
        raise NoSession(message)

    def expires(self, vault: OpenVault, now: float) -> int:
        """Whole seconds until the vault closes by itself if nobody uses it."""
        return max(0, int(min(vault.used + self._idle, vault.opened + self._age) - now))

    def close(self, account_id: str) -> int:
        """Forget an account's vault key and tokens; how many vaults that closed."""
        vault = self._open.pop(account_id, None)
        if vault is None:
            return 0
        for token in vault.tokens:
            self._tokens.pop(token, None)
        vault.tokens.clear()
        vault.right.clear()
        vault.pending.clear()
        vault.vault_key = VaultKey(b"")
        return 1

    def expire(self, now: float) -> list[OpenVault]:
        """Close what has been idle or open too long; those that reached their age."""
        ended = [vault for vault in self._open.values() if self._expired(vault, now)]
        for vault in ended:
            self.close(vault.account_id)
        return [vault for vault in ended if now >= vault.opened + self._age]

    def wipe(self) -> int:
        """Close all, at the end of the process."""
        return sum(map(self.close, list(self._open)))

    def _expired(self, vault: OpenVault, now: float) -> bool:
        return now >= vault.used + self._idle or now >= vault.opened + self._age


class WrongSecrets:
    """Secrets that were wrong a moment ago, so that asking again costs no Argon2id."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, mark: bytes, now: float) -> None:
        """Remember the mark for some minutes."""
        self._until[mark] = now + WRONG_SECONDS
        self._until.move_to_end(mark)
        if len(self._until) > WRONG_LIMIT:
            self._until.popitem(last=False)

    def knows(self, mark: bytes, now: float) -> bool:
        """True while the mark is remembered."""
        until = self._until.get(mark)
        if until is not None and now >= until:
            del self._until[mark]
            return False
        return until is not None

    def wipe(self) -> None:
        """Forget all."""
        self._until.clear()
