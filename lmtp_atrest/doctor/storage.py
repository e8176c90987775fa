"""Where mail lies and in what form: whether Dovecot sees what is stored, and nobody else's breaks.

What is refused was measured on Dovecot 2.3.19 and 2.4.1; tests/integration/test_refusals.py
shows most of it, on each version that it concerns.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lmtp_atrest.doctor.facts import Facts, User
from lmtp_atrest.doctor.findings import Finding, refusal, warning
from lmtp_atrest.dovecot import YES, Block, Doveconf, Place, expand, home_of, inbox_place, places

# Stands for everybody where there is no account yet to ask for.
ANYBODY = User("somebody@example.org", "/home-of-somebody", "")


def mailbox_format(facts: Facts) -> Iterator[Finding]:
    """Mbox, a format that Dovecot guesses, or one that our LMTP does not write."""
    if facts.doveconf is None:
        return
    # What the user database says of a user comes before what the configuration says.
    known = [user for user in facts.users if user.answer] or [ANYBODY]
    inboxes = sorted({_place_of(facts.doveconf, user).driver for user in known})
    if "mbox" in inboxes or any(place.driver == "mbox" for place in places(facts.doveconf)):
        yield refusal(
            "mbox",
            "Dovecot keeps mail in mbox files, and writes to them in clear although it is handed "
            "a key; what lmtp-atrest stores in a Maildir it does not show",
            "convert the mailboxes to Maildir and set mail_location = maildir:~/Maildir "
            "(2.4: mail_driver = maildir, mail_path and mail_inbox_path = ~/Maildir)",
        )
    elif "" in inboxes:
        yield refusal(
            "guessed-format",
            "Dovecot's settings do not say where mail lies: it guesses for each user, by what it "
            "finds at that moment, and may look beside the Maildir",
            "set mail_location = maildir:~/Maildir (2.4: mail_driver, mail_path, mail_inbox_path)",
        )
    elif facts.our_lmtp and inboxes != ["maildir"]:
        yield refusal(
            "not-maildir",
            f"Dovecot keeps mail as {' and '.join(inboxes)}: it would never show what the LMTP of "
            "lmtp-atrest stores, which is Maildir",
            "let Dovecot's own LMTP deliver and set mail: {delivered_by: dovecot}, or convert",
        )


def inbox(facts: Facts) -> Iterator[Finding]:
    """INBOX at another place than the one we deliver to; for each account, or for anybody."""
    doveconf = facts.doveconf
    if doveconf is None or not facts.our_lmtp:
        return
    for user in facts.users or (ANYBODY,):
        yield from _inbox_of(facts, doveconf, user)


def _inbox_of(facts: Facts, doveconf: Doveconf, user: User) -> Iterator[Finding]:
    place = _place_of(doveconf, user)
    if place.driver != "maildir":
        return  # said of the format
    maildir = _maildir(facts, user)
    ours = facts.config.mail.inbox_of(user.home, maildir)
    seen = _filled_in(doveconf, user, place.inbox)
    who = "new accounts" if user is ANYBODY else user.name
    if doveconf.version == "2.4" and not place.inbox:
        yield refusal(
            "inbox-unset",
            "mail_inbox_path is empty or not set; where it is empty, INBOX is a folder "
            f"beside the mail that lmtp-atrest stores ({place.path}/.INBOX)",
            f"set mail_inbox_path = {place.path}; a site whose mail lies in .INBOX already names "
            'that, and sets mail: {inbox: "{maildir}/.INBOX"}',
        )
    elif not place.inbox:
        yield refusal(
            "inbox-elsewhere",
            f"with LAYOUT={place.layout} INBOX lies in a directory that Dovecot names itself, "
            "and mail of lmtp-atrest would never be shown",
            "use the layout maildir++ or fs, or let Dovecot deliver (mail.delivered_by: dovecot)",
        )
    elif seen is None:
        yield warning(
            "inbox-unknown",
            f"cannot tell which directory {place.inbox} is for {who}",
            f"compare `doveadm mailbox path -u ADDRESS INBOX` with {ours}",
        )
    elif not _same(seen, ours):
        yield refusal(
            "inbox-elsewhere",
            f"for {who} Dovecot's INBOX is {seen}, and lmtp-atrest delivers to {ours}: "
            "mail would never be shown",
            "make mail.home, mail.path and mail.inbox say what Dovecot's mail_home and mail "
            "location say; for an account that exists, remove it and add it with --maildir",
        )


def _maildir(facts: Facts, user: User) -> str:
    return user.maildir or facts.config.mail.maildir(user.home)


def _place_of(doveconf: Doveconf, user: User) -> Place:
    return inbox_place(doveconf, user.fields)


def _filled_in(doveconf: Doveconf, user: User, template: str) -> str | None:
    """A path of Dovecot's for this user, with the home that Dovecot gives."""
    home = user.home
    if user is not ANYBODY:  # else templates are compared, not one home with another
        home = home_of(doveconf, user.name, user.fields, user.home)
    return expand(template, user.name, home)


def _same(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def folders(facts: Facts) -> Iterator[Finding]:
    """Folders that delivery would not find, so that mail for them goes to INBOX."""
    if facts.doveconf is None or not facts.our_lmtp:
        return
    place, lmtp = inbox_place(facts.doveconf), facts.config.lmtp
    if place.driver != "maildir":
        return
    if place.layout in ("maildir++", "fs") and place.layout != lmtp.folder_style:
        yield warning(
            "folder-style",
            f"Dovecot's folders lie as {place.layout}, lmtp.folder_style is {lmtp.folder_style}: "
            "mail for folders (user+folder@, header_rules) goes to INBOX",
            f"set lmtp.folder_style: {place.layout}",
        )
    names = "utf-8" if place.utf8 else "utf-7"
    if names != lmtp.folder_names:
        yield warning(
            "folder-names",
            f"Dovecot names folders on disk in {names}, lmtp.folder_names is "
            f"{lmtp.folder_names}: mail for folders with letters beyond ASCII goes to INBOX",
            f"set lmtp.folder_names: {names}",
        )
    for user in facts.users or (ANYBODY,):
        path = _filled_in(facts.doveconf, user, _place_of(facts.doveconf, user).path)
        maildir = _maildir(facts, user)
        if path is not None and not _same(path, maildir):
            yield warning(
                "folders-elsewhere",
                f"Dovecot's folders lie below {path}, those of lmtp-atrest below {maildir}: mail "
                "for folders (user+folder@, header_rules) goes to INBOX",
                "make mail.path say where folders lie, and mail.inbox where INBOX lies",
            )


def indexes(facts: Facts) -> Iterator[Finding]:
    """Index caches where conversion would not look for them."""
    doveconf = facts.doveconf
    if doveconf is None:
        return
    for user in facts.users or (ANYBODY,):
        place, maildir = _place_of(doveconf, user), _maildir(facts, user)
        known = facts.config.mail.indexes_of(user.home, maildir, (user.name,))
        who = "new accounts" if user is ANYBODY else user.name
        for template in place.indexes if place.driver == "maildir" else ():
            seen = _filled_in(doveconf, user, template)
            if seen is None:
                yield warning(
                    "index-unknown",
                    f"cannot tell which directory {template} is for {who}",
                    "have mail.index name where Dovecot keeps indexes",
                )
            elif not _below(seen, facts.config.unlock.cache_root) and not any(
                _same(seen, str(path)) for path in (*known, maildir)
            ):
                yield refusal(
                    "index-elsewhere",
                    f"for {who} Dovecot keeps indexes in {seen}: once mail is encrypted, what the "
                    "caches there hold of it in clear would stay",
                    'set mail.index, as mail: {index: ["{home}/index"]}',
                )


def namespaces(facts: Facts) -> Iterator[Finding]:
    """Folders that users share, where one encrypted user's mail is unreadable to the others."""
    blocks = facts.doveconf.root.of("namespace") if facts.doveconf else []
    shared = [block for block in blocks if block.shared and not _disabled(block)]
    if shared:
        prefixes = ", ".join(block.get("prefix") or block.name for block in shared)
        yield refusal(
            "shared-namespace",
            f"there are shared or public namespaces ({prefixes}): what an encrypted user saves "
            "there is encrypted to that user alone, and a message that breaks off for all others",
            "make them read-only for encrypted users (acl), then give --accept shared-namespace",
        )
    for user in facts.users:
        root = next((r for r in facts.config.mail.shared_roots if _below(user.maildir, r)), None)
        if root is not None:
            yield refusal(
                "shared-root",
                f"the Maildir of {user.name} ({user.maildir}) lies below {root}, which "
                "mail.shared_roots calls shared: others read it, and would see ciphertext",
                "move the mail out of it, or leave this account plain",
            )


def _disabled(namespace: Block) -> bool:
    return namespace.get("disabled") in YES


def _below(maildir: str, root: Path) -> bool:
    ways = (Path(maildir), Path(os.path.realpath(maildir)))
    roots = (root, Path(os.path.realpath(root)))
    return any(way.is_relative_to(one) for way in ways for one in roots)


def replication(facts: Facts) -> Iterator[Finding]:
    """The dsync replicator of 2.3; 2.4 has none."""
    doveconf = facts.doveconf
    if doveconf is not None and any(
        "replication" in doveconf.plugins(protocol) for protocol in ("", "imap", "lmtp", "doveadm")
    ):
        yield refusal(
            "replicator",
            "dsync replication is on: it has no key, and stops at the first encrypted message "
            "(`doveadm backup` too, exit code 75), so the copy grows old unnoticed",
            "replicate below Dovecot (file system, or one shared store), or leave users plain",
        )


def attachments(facts: Facts) -> Iterator[Finding]:
    """Attachments that dbox formats put beside the message, in clear."""
    if facts.doveconf is None or inbox_place(facts.doveconf).driver == "maildir":
        return
    # 2.4 prints mail_ext_attachment_path as `path` in a block of its own.
    blocks = facts.doveconf.root.of("mail_ext_attachment")
    named = [facts.doveconf.get("mail_attachment_dir"), *(block.get("path") for block in blocks)]
    for directory in filter(None, named):
        yield refusal(
            "attachments",
            f"Dovecot saves attachments in {directory}, in clear, those of encrypted users too",
            "take mail_attachment_dir (2.4: mail_ext_attachment_path) away: attachments then stay "
            "in their message, encrypted",
        )


def hard_links(facts: Facts) -> Iterator[Finding]:
    """Dovecot 2.3's LMTP may link the second recipient of a message to the first one's file."""
    doveconf = facts.doveconf
    if doveconf is None or doveconf.version != "2.3":
        return
    served = doveconf.protocols()
    if served and "lmtp" not in served:
        return
    driver = inbox_place(doveconf).driver
    linked = (
        "for the second recipient of a message Dovecot's LMTP makes a hard link to the file of "
        "the first: in clear, or sealed to another one's key"
    )
    setting = "maildir_copy_with_hardlinks"
    if driver == "maildir" and doveconf.get(setting, "yes", "lmtp") in YES:
        yield refusal("hard-links", linked, f"set {setting} = no in protocol lmtp")
    if driver == "sdbox" and not facts.our_lmtp:
        yield refusal(
            "hard-links",
            linked,
            "let the MTA hand over one recipient at a time (Postfix: "
            "lmtp_destination_recipient_limit = 1, Exim: max_rcpt = 1), then --accept hard-links",
        )


def readers(facts: Facts) -> Iterator[Finding]:
    """A curve that one of the site's Dovecots cannot read; no reader of a known version."""
    seen = {facts.doveconf.version} if facts.doveconf else set()
    versions = seen | set(facts.config.directory.readers)
    if facts.config.atrest.curve == "x25519" and "2.3" in versions:
        yield refusal(
            "curve",
            "atrest.curve is x25519, and imap and lmtp of Dovecot 2.3 die on such a key",
            "set atrest.curve: prime256v1 (until every Dovecot is 2.4)",
        )
    for unknown in sorted(seen - {"2.3", "2.4"}):
        yield warning(
            "reader-version",
            f"this Dovecot is {unknown or 'of an unknown version'}, and lmtp-atrest is tested "
            "with 2.3 and 2.4",
            "try it with one account first",
        )
