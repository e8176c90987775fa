"""Dovecot's auth stack: whether each login gets its keys, and each delivery its public key.

The snippets in deploy/dovecot are the stack that works; these are the ways in which a site's own
differs from it. `doveconf -n` leaves out defaults: result_success is return-ok, the other results
are continue, skip is never.
"""

from collections.abc import Iterator
from pathlib import Path

from lmtp_atrest.doctor.facts import OUR_SCRIPT, Facts
from lmtp_atrest.doctor.findings import Finding, problem, refusal, warning
from lmtp_atrest.dovecot import LONG, SHORT, YES, Block, Doveconf

SNIPPET = "see deploy/dovecot/dovecot-{}.conf"
CONTINUES = ("continue", "continue-ok")


def passdbs(facts: Facts) -> Iterator[Finding]:
    """Our passdb: there, behind the site's, and never asked about a login that was refused."""
    if facts.doveconf is None:
        return
    way_out = SNIPPET.format(facts.doveconf.version)
    stack = [
        block
        for block in facts.doveconf.root.of("passdb")
        if _decides(block) and not _takes_app_passwords(block)
    ]
    ours = next((block for block in stack if _is_ours(block)), None)
    if ours is None:
        yield refusal(
            "passdb-missing",
            f"no passdb runs {OUR_SCRIPT}: a login brings no keys, encrypted mail stays closed",
            way_out,
        )
        return
    yield from _our_passdb(ours, stack[: stack.index(ours)], way_out)


def _our_passdb(ours: Block, before: list[Block], way_out: str) -> Iterator[Finding]:
    """Whether ours is asked, after whom, and for what."""
    if not before or any(b.get("result_success", "return-ok") not in CONTINUES for b in before):
        yield refusal(
            "passdb-order",
            "the site's passdb does not hand a login on to lmtp-atrest (it has to stand before "
            "it, with result_success = continue-ok): encrypted mail stays closed",
            way_out,
        )
    if ours.get("skip", "never") != "unauthenticated":
        yield refusal(
            "passdb-unverified",
            "our passdb is asked about passwords that the site refused (skip = unauthenticated is "
            "missing), and its answer lets them in",
            way_out,
        )
    elif before and before[-1].get("result_failure", "continue") != "return-fail":
        yield warning(
            "passdb-failure",
            "the site's last passdb goes on after a wrong password (no result_failure = "
            "return-fail); only `skip = unauthenticated` of ours stops it",
            way_out,
        )
    if ours.get("result_internalfail", "continue") != "return-fail":
        yield problem(
            "passdb-internalfail",
            "while the unlock service is down, encrypted users log in without keys",
            f"set result_internalfail = return-fail in our passdb; {way_out}",
        )


def userdbs(facts: Facts) -> Iterator[Finding]:
    """Our userdb: there, before the site's, and a failure of it is no answer."""
    if facts.doveconf is None:
        return
    way_out = SNIPPET.format(facts.doveconf.version)
    stack = facts.doveconf.root.of("userdb")
    ours = next((block for block in stack if _is_ours(block)), None)
    if ours is None:
        yield refusal(
            "userdb-missing",
            f"no userdb runs {OUR_SCRIPT}: what Dovecot's own LMTP or doveadm saves for an "
            "encrypted account is stored in clear",
            way_out,
        )
        return
    yield from _our_userdb(ours, stack[: stack.index(ours)], way_out)
    if any(map(_takes_app_passwords, facts.doveconf.root.of("passdb"))):
        yield from _last_userdb(stack[-1], way_out)


def _our_userdb(ours: Block, before: list[Block], way_out: str) -> Iterator[Finding]:
    """Whether ours is asked, after whom, and what its failure means."""
    # Without a login `prefetch` finds nothing, and so cannot end the look-up.
    sites = [block for block in before if block.driver != "prefetch"]
    if any(block.get("result_success", "return-ok") not in CONTINUES for block in sites):
        yield refusal(
            "userdb-order",
            "a userdb before ours ends the look-up: what Dovecot saves without a login is stored "
            "in clear",
            way_out,
        )
    if ours.get("result_internalfail", "continue") != "return-fail":
        yield refusal(
            "userdb-internalfail",
            "while the unlock service is down, Dovecot takes an encrypted account for a plain one "
            "and stores its mail in clear",
            f"set result_internalfail = return-fail in our userdb; {way_out}",
        )
    ending = [
        block.driver
        for block in (*before, ours)
        if block not in sites and block.get("result_success", "return-ok") not in CONTINUES
    ]
    if ending:
        yield warning(
            "userdb-result",
            f"userdb {' and '.join(ending)} ends the look-up (no result_success = continue-ok): "
            "the site's userdb is not asked for home, uid and gid of encrypted users",
            way_out,
        )


def _last_userdb(last: Block, way_out: str) -> Iterator[Finding]:
    """Whether it has the last word about who exists."""
    if _is_ours(last) or last.get("result_failure", "continue") != "return-fail":
        yield warning(
            "userdb-unknown",
            "the site's userdb lets our answer stand for somebody whom it does not know (no "
            "result_failure = return-fail): who is gone there still logs in with an app password",
            f"set result_failure = return-fail in it; {way_out}",
        )


def username(facts: Facts) -> Iterator[Finding]:
    """A user name format that cuts the domain off, so that an account is not known by its name."""
    if facts.doveconf is None:
        return
    names = [user.name for user in facts.users]
    if names and not any("@" in name for name in names):
        return  # names without a domain are this site's names
    who = names[0] if names else "an account"
    for protocol in _cutting(facts.doveconf):
        where = f"protocol {protocol} {{ auth_username_format }}" if protocol else "globally"
        yield refusal(
            "username-format",
            f"auth_username_format cuts the domain off ({where}): {who} is then not known as "
            "encrypted, and Dovecot stores its mail in clear, or bounces it",
            "set auth_username_format to the whole name (2.3: %Lu, 2.4: %{user | lower}) there; "
            "Debian 13 cuts it off in conf.d/20-lmtp.conf",
        )


def _cutting(doveconf: Doveconf) -> list[str]:
    default = "%u"
    found = [
        protocol
        for protocol in ("", "imap", "pop3", "lmtp", "lda")
        if not _keeps_domain(doveconf.get("auth_username_format", default, protocol))
    ]
    return [""] if "" in found else found


def _keeps_domain(template: str) -> bool:
    words = [match[1] for match in SHORT.finditer(template)]
    words += [match[2] or match[1] for match in LONG.finditer(template)]
    # A format without any word of ours (2.4's own functions, or empty) is not judged.
    return not words or bool({"u", "user", "d", "domain"} & set(words))


def auth_cache(facts: Facts) -> Iterator[Finding]:
    """Dovecot's cache of logins, which keeps answers of before an account was encrypted."""
    if facts.doveconf is None or facts.doveconf.get("auth_cache_size", "0").strip("0BkMG ") == "":
        return
    stack = [*facts.doveconf.root.of("passdb"), *facts.doveconf.root.of("userdb")]
    if any(_is_ours(block) and _is_cached(block) for block in stack):
        yield refusal(
            "auth-cache",
            "auth_cache_size is on and our passdb or userdb has a cache key: keys stay in the "
            "auth process, and an account that was just encrypted is taken for plain",
            "set auth_cache_size = 0, or take the cache key away",
        )
    else:
        yield warning(
            "auth-cache",
            "auth_cache_size is on: passwords that were changed, and what the site's databases "
            "said, stay in the auth process",
            "set auth_cache_size = 0",
        )


def _is_cached(block: Block) -> bool:
    return "cache_key=" in block.get("args") or block.get("use_cache") in YES


def post_login(facts: Facts) -> Iterator[Finding]:
    """Programs between login and mail, which find the keys in their environment."""
    for service in facts.doveconf.root.of("service") if facts.doveconf else ():
        if Path(service.get("executable").partition(" ")[0]).name == "script-login":
            yield problem(
                "post-login",
                f"service {service.name} runs a post-login script: it gets the private keys of "
                "each login in its environment",
                "run no script between login and mail for encrypted users",
            )


def _decides(block: Block) -> bool:
    """Whether a passdb can accept a login of an ordinary user."""
    return block.get("master") not in YES and block.get("deny") not in YES


def _takes_app_passwords(block: Block) -> bool:
    """Whether this is our passdb at its place before the site's, where it decides by itself."""
    return _is_ours(block) and block.get("skip") == "authenticated"


def _is_ours(block: Block) -> bool:
    script = block.get("lua_file") or block.get("args")
    return block.driver == "lua" and OUR_SCRIPT in script
