"""How an account stands, as its owner is shown it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtp_atrest.unlock.protocol import Reply


@dataclass(frozen=True, slots=True)
class Progress:
    """Mail that is already there: messages that are encrypted, and those still to do."""

    encrypted: int
    left: int
    failed: int
    running: bool

    @property
    def total(self) -> int:
        """Of how many."""
        return self.encrypted + self.left


@dataclass(frozen=True, slots=True)
class Standing:
    """What the overview tells; the lists are as the unlock service gave them."""

    state: str
    since: int
    generation: int
    frozen: bool
    closed_vaults: int
    has_code: bool
    code_made: int
    pending: bool
    app_passwords: list[Mapping[str, Any]]
    admin: str
    admin_policy: str
    admin_set: bool
    vaults: list[Mapping[str, Any]]
    readers: int | str
    progress: Progress | None
    activity: list[Mapping[str, Any]]

    @classmethod
    def of(cls, reply: Reply) -> "Standing":
        """From the unlock service's answer."""
        slots = reply.get("slots", [])
        codes = [slot for slot in slots if slot["kind"] == "recovery-code"]
        told = reply.get("progress")
        return cls(
            state=str(reply["state"]),
            since=int(reply.get("since", 0)),
            generation=len(reply.get("key_ids", [])),
            frozen=bool(reply.get("frozen", False)),
            closed_vaults=int(reply.get("closed_vaults", 0)),
            has_code=bool(codes),
            code_made=max((int(slot["created"]) for slot in codes), default=0),
            pending=any(slot["state"] == "pending" for slot in slots),
            app_passwords=[slot for slot in slots if slot["kind"] == "app-password"],
            admin=str(reply.get("admin_recovery", "no")),
            admin_policy=str(reply["admin_policy"]),
            admin_set=bool(reply["admin_set"]),
            vaults=reply.get("vaults", []),
            readers=reply.get("readers", "unknown"),
            progress=_progress(told) if told else None,
            activity=reply.get("activity", []),
        )

    @property
    def encrypted(self) -> bool:
        """Whether there is anything to open: also while it is being switched off."""
        return self.state in ("encrypted", "leaving")

    @property
    def may_choose_admin(self) -> bool:
        """Whether the owner has a word on admin recovery."""
        return self.admin_policy == "allowed" and (self.admin_set or self.admin == "yes")


def _progress(told: Mapping[str, Any]) -> Progress:
    return Progress(
        int(told["encrypted"]), int(told["left"]), int(told["failed"]), told["state"] == "running"
    )
