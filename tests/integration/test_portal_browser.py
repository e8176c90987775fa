"""The portal as people use it: in a real browser, with a real Dovecot that reads their mail.

Each story is told twice: in English at a desk with scripts beside Dovecot 2.4, and in German on a
phone, dark and without scripts, beside Dovecot 2.3. French and Spanish walk through all pages.
`make screenshots` has the same stories write the pictures of the documentation.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from selenium.webdriver.common.keys import Keys

from lmtp_atrest.unlock.requests import AccountCode, AdminSet
from tests.integration.living import MAGIC, Living, password_command, secret
from tests.integration.site import ALICE, BOB, PASSWORD, USERS
from tests.integration.visitor import Visitor
from tests.peers.atrest import MAIL_USER
from tests.peers.browser import ROOT, Browser, Look
from tests.peers.dovecot import Dovecot
from tests.peers.root import attempts, free_ports, missing, wait_for_port

pytestmark = pytest.mark.peers

DESK = Look()
PHONE = Look(language="de", scripts=False, phone=True, dark=True)
twice = pytest.mark.parametrize(
    ("host", "look"),
    [
        pytest.param("trixie", DESK, id="desk-2.4"),
        pytest.param("bookworm", PHONE, id="phone-2.3"),
    ],
    indirect=["host"],
)
once = pytest.mark.parametrize("host", ["trixie"], indirect=True)

NEW, OTHER, THIRD = (
    "violet tram over 7 lakes",
    "nine quiet lanterns, unlit",
    "Ödes Moor & 5 Pappeln",
)
ADMIN = "the administrators' own, in a safe"
WEAK = "password1"
PORTAL_USER = "nobody"
PAGES = (
    "code",
    "password",
    "app-passwords",
    "admin-recovery",
    "freeze",
    "activity",
    "switch-off",
    "changed",
    "forgot",
)
# With names, which `Browser` maps, or without TLS as behind a proxy; below a path, or not.
ADDRESSES = {
    "en": "https://mail.example.org/keys/",
    "de": "https://keys.example.org/",
    "fr": "http://127.0.0.1:{port}/mail/keys/",
}
OLD_MESSAGES = 120
ACTIONS_LIMIT = 12  # clicks and fields, from the first page to a code that was checked


@pytest.fixture
def site(dovecot: Dovecot, shared: Path, look: Look) -> Iterator[Living]:
    """A site with a portal, and mail of bob's from before."""
    running = Living(dovecot, **sections(dovecot, shared, ADDRESSES[look.language]))
    running.know(NEW, OTHER, THIRD, WEAK)
    fill(dovecot.mail / BOB / "Maildir")
    with running:
        wait_for_port(port_of(running), running.atrest.log_path)
        yield running


def sections(dovecot: Dovecot, shared: Path, address: str) -> dict[str, dict[str, object]]:
    (port,) = free_ports(1)
    tls = address.startswith("https:")
    return {
        "portal": {
            "listen": f"127.0.0.1:{443 if tls else port}",
            "url": address.format(port=port),
            "tls": certificate(shared) if tls else None,
            "user": PORTAL_USER,
            "authenticate": f"imap://127.0.0.1:{dovecot.ports.imap}",
            "name": "Example Mail",
            "support": "mailto:help@example.org",
            "back": "https://mail.example.org/",
        },
        "site": {"password_command": password_command(dovecot)},
        "conversion": {"messages_per_second": 30},
    }


def certificate(shared: Path) -> dict[str, str]:
    made = trustme.CA().issue_cert("mail.example.org")
    paths = {"certificate": shared / "portal.crt", "key": shared / "portal.key"}
    made.cert_chain_pems[0].write_to_path(paths["certificate"])
    made.private_key_pem.write_to_path(paths["key"])
    shutil.chown(paths["key"], PORTAL_USER)
    paths["key"].chmod(0o600)
    return {name: str(path) for name, path in paths.items()}


def port_of(site: Living) -> int:
    return int(str(site.atrest.config.portal.listen).rpartition(":")[2])


def fill(maildir: Path) -> None:
    """Plain mail from before."""
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True)
    for number in range(OLD_MESSAGES):
        data = f"Subject: before-{number}\r\n\r\nbefore-{number}\r\n".encode()
        size = len(data)
        (maildir / f"cur/17{number:08}.M{number}P1.host,S={size},W={size}:2,S").write_bytes(data)
    for path in (maildir.parent, *maildir.parent.rglob("*")):
        shutil.chown(path, MAIL_USER, MAIL_USER)


@pytest.fixture
def visitor(
    site: Living, look: Look, shared: Path, request: pytest.FixtureRequest
) -> Iterator[Visitor]:
    if reason := missing(ROOT):
        pytest.skip(reason)
    with Browser(shared, look=look) as browser:
        somebody = Visitor(browser, site.atrest.config.portal.url, look)
        somebody.pictures = request.config.getoption("--pictures")
        yield somebody
        print("\n".join(f"{s * 1000:6.0f} ms  {place}" for place, s in somebody.seconds.items()))


def sealed(site: Living, name: str) -> set[bool]:
    return {path.read_bytes().startswith(MAGIC) for path in site.dovecot.files(name)}


@twice
def test_from_signing_in_to_encrypted_mail_with_a_code_on_paper(
    site: Living, visitor: Visitor
) -> None:
    browser, own = visitor.browser, USERS[BOB]
    old = site.reads(own, BOB)
    assert len(old) == OLD_MESSAGES
    visitor.open()
    assert visitor.place == "sign-in", "of a stranger"
    visitor.picture("sign-in")
    visitor.send("sign-in", name=BOB, secret=own)
    visitor.told("state.plain", place="")
    visitor.follow("switch-on")
    visitor.told("switch-on.lost-both", "switch-on.nobody-can")
    visitor.send("switch-on", ticks=["understood"], secret=own)
    code = visitor.secret()
    site.know(code)
    visitor.picture("code")
    assert browser.barcodes() == [code]
    assert browser.sheets() == 1
    if visitor.look.scripts:
        browser.click("#print")
    else:
        assert not browser.all("#print")[0].is_displayed(), "it would do nothing"
    visitor.send("code-check", group=code[-4:].lower())
    actions = browser.clicks + browser.fields
    visitor.told("code-check.right", "state.encrypted", place="")
    print(f"{actions} clicks and fields")
    assert actions <= ACTIONS_LIMIT

    # The old mail follows, and the page shows how far it is.
    visitor.told_in_time("progress.figures", by_itself=visitor.look.scripts)
    visitor.picture("overview", phone=True)
    for _ in attempts("the page says that all of it is done", 30):
        if visitor.texts("progress.figures", encrypted=OLD_MESSAGES, left=0) in browser.text():
            break
        if not visitor.look.scripts:
            visitor.open()
    assert sealed(site, BOB) == {True}
    assert site.deliver("new", BOB)
    assert site.reads(own, BOB) == old | {"new"}
    site.wait_for_notices("is now kept encrypted")


@twice
def test_a_password_is_changed_forgotten_and_changed_elsewhere(
    site: Living, visitor: Visitor
) -> None:
    browser = visitor.browser
    assert site.deliver("first")
    code = site.admin(AccountCode(ALICE, secret(PASSWORD)))["code"]
    site.know(code)
    visitor.sign_in(ALICE, PASSWORD)
    visitor.follow("password")
    browser.fill("secret", PASSWORD)
    browser.fill("new", NEW)
    if visitor.look.scripts:
        visitor.told_in_time("strength.4", by_itself=True)
    visitor.picture("password")
    browser.fill("new", WEAK)
    if visitor.look.scripts:
        visitor.told_in_time("strength.0", by_itself=True)
    visitor.send("password", secret=PASSWORD, new=WEAK, repeat=WEAK)
    visitor.told("strength.0")
    visitor.send("password", secret=PASSWORD, new=NEW, repeat=OTHER)
    visitor.told("secret.not-repeated")
    visitor.send("password", secret="wrong", new=NEW, repeat=NEW)
    visitor.told("secret.wrong")
    visitor.send("password", secret=PASSWORD, new=NEW, repeat=NEW)
    visitor.told("password.done", place="")
    site.wait_for_password(ALICE, NEW)
    assert site.reads(NEW) == {"first"}
    visitor.sign_out()

    visitor.follow("forgot")
    swapped = code[:-2] + code[-1] + code[-2]
    typo = swapped if swapped != code else code[:-1] + ("0" if code[-1] != "0" else "1")
    visitor.send("forgot", name=ALICE, code=typo, new=OTHER, repeat=OTHER)
    visitor.told("code.typo")
    visitor.send("forgot", name=ALICE, code=code.lower(), new=OTHER, repeat=OTHER)
    next_code = visitor.secret()
    site.know(next_code)
    assert next_code != code
    visitor.send("code-check", group=next_code[-4:])
    visitor.told("code-check.right", place="")
    site.wait_for_password(ALICE, OTHER)
    assert site.deliver("second")
    assert site.reads(OTHER) == {"first", "second"}
    visitor.sign_out()

    site.site_password(ALICE, THIRD)
    assert "encrypted with another password" in site.told(THIRD)
    visitor.follow("changed")
    visitor.send("changed", ticks=["by=password"], name=ALICE, new=THIRD, repeat=THIRD, old=OTHER)
    visitor.told("changed.done", place="")
    assert site.reads(THIRD) == {"first", "second"}


@twice
def test_a_device_gets_a_password_of_its_own_and_loses_it(site: Living, visitor: Visitor) -> None:
    browser = visitor.browser
    assert site.deliver("first")
    visitor.sign_in(ALICE, PASSWORD)
    visitor.follow("app-passwords")
    visitor.told("app-passwords.none")
    label = "Handy <b>" if visitor.look.phone else "phone"
    visitor.send("app-passwords", label=label, secret=PASSWORD)
    text = visitor.secret("#app-password")
    site.know(text)
    assert label in browser.text()
    assert site.reads(text) == {"first"}
    visitor.follow("app-passwords")
    visitor.send("app-passwords/remove", remove_secret=PASSWORD)
    visitor.told("app-passwords.none-chosen")
    visitor.send("app-passwords/remove", ticks=["handle"], remove_secret=PASSWORD)
    visitor.told("app-passwords.removed", "app-passwords.none")
    assert "AUTHENTICATIONFAILED" in site.told(text)

    client = site.dovecot.login(ALICE, PASSWORD)
    visitor.open()
    visitor.told_in_time("sessions.readers")
    visitor.send("lock")
    visitor.told("lock.done", "sessions.none", place="")
    with pytest.raises(client.abort):
        client.noop()
    client.shutdown()
    visitor.open("activity")
    visitor.told("event.opened", "event.app-password-added", "event.app-password-removed")
    visitor.picture("activity")


@twice
def test_a_mailbox_is_frozen_thawed_and_left(site: Living, visitor: Visitor) -> None:
    assert site.deliver("first")
    site.admin(AdminSet(secret(ADMIN)))
    site.know(ADMIN)
    visitor.sign_in(ALICE, PASSWORD)
    visitor.follow("code")
    visitor.send("code", secret=PASSWORD)
    code = visitor.secret()
    site.know(code)
    visitor.send("code-check", group="ZZZZ")
    visitor.told("code-check.wrong")
    assert code not in visitor.browser.driver.page_source
    visitor.send("code-check", group=code[-4:])
    visitor.told("code-check.right", place="")
    for _ in range(2):
        visitor.browser.driver.back()
    assert code not in visitor.browser.driver.page_source, "shown once"
    visitor.open("code-check")
    assert visitor.place == "", "nothing is left to check"
    visitor.follow("admin-recovery")
    for choice, told in (("accept", "accepted"), ("refuse", "refused")):
        visitor.open("admin-recovery")
        visitor.send("admin-recovery", ticks=[f"choice={choice}"], secret=PASSWORD)
        visitor.told(f"admin-recovery.{told}", place="")

    visitor.follow("freeze")
    visitor.send("freeze")
    visitor.told("freeze.done", "state.frozen", place="")
    assert "is frozen" in site.told(PASSWORD)
    visitor.follow("freeze")
    visitor.send("thaw", code=code)
    visitor.told("thaw.done", "state.encrypted", place="")
    assert site.reads(PASSWORD) == {"first"}

    visitor.follow("switch-off")
    visitor.send("switch-off", secret=PASSWORD)
    visitor.told("switch-off.done", "state.leaving", place="")
    visitor.follow("switch-off")
    visitor.send("switch-off", secret=PASSWORD)
    visitor.told("switch-off.undone", "state.encrypted", place="")


@twice
def test_nobody_is_told_anything_who_is_not_signed_in(site: Living, visitor: Visitor) -> None:
    browser = visitor.browser
    for name in (ALICE, BOB if visitor.look.phone else "nobody@example.org"):
        visitor.sign_in(name, "wrong")
        visitor.told("sign-in.wrong", place="sign-in")
    visitor.sign_in(ALICE, PASSWORD)
    visitor.told("state.encrypted")
    # A link of another site brings no cookie along; whoever is signed in comes in all the same.
    browser.open(f"data:text/html,<title>webmail</title><a href='{visitor.address}'>keys</a>")
    browser.go("a")
    visitor.told_in_time("state.encrypted", by_itself=True)
    before = {cookie["value"] for cookie in browser.driver.get_cookies()}
    visitor.open("activity")
    visitor.sign_out()
    browser.driver.back()
    assert not visitor.says("activity.lead")
    for place in ("", "activity", "password", "app-passwords", "freeze", "code-check"):
        visitor.open(place)
        assert visitor.place == "sign-in"
    visitor.sign_in(ALICE, PASSWORD)
    cookies = browser.driver.get_cookies()
    assert all(cookie["httpOnly"] and cookie["sameSite"] == "Strict" for cookie in cookies)
    assert all(cookie["secure"] for cookie in cookies)
    assert not {c["value"] for c in cookies if "session" in c["name"]} & before


@once
@pytest.mark.parametrize("look", [Look(language="fr", phone=True)], ids=[""])
def test_all_pages_in_other_languages(site: Living, visitor: Visitor) -> None:
    site.admin(AdminSet(secret(ADMIN)))
    site.know(ADMIN, site.admin(AccountCode(ALICE, secret(PASSWORD)))["code"])
    for look in (visitor.look, Look(language="es", phone=True, dark=True)):
        visitor.set_up(look)
        for place in ("sign-in", "forgot", "changed", "nowhere"):
            visitor.open(place)
        visitor.sign_in(ALICE, PASSWORD)
        for place in PAGES:
            visitor.open(place)
            assert visitor.place == place
        for language in ("en", "de", visitor.look.language):
            visitor.browser.go(f"footer a[hreflang='{language}']")
            assert visitor.browser.evaluate("document.documentElement.lang") == language
        visitor.sign_out()
        visitor.browser.driver.delete_all_cookies()  # the chosen language counts before the look

    # While the unlock service is away; and where the site's passwords are not the portal's to set.
    site.atrest.stop()
    site.atrest.configure(site={"password_command": None})
    site.atrest.start("portal")
    wait_for_port(port_of(site), site.atrest.log_path)
    visitor.sign_in(ALICE, PASSWORD)
    visitor.told("http.503")
    site.atrest.stop()
    site.atrest.start()
    wait_for_port(port_of(site), site.atrest.log_path)
    visitor.open("forgot")
    visitor.told("forgot.site-first")
    visitor.sign_in(ALICE, PASSWORD)
    visitor.follow("changed")


@once
@pytest.mark.parametrize("look", [DESK], ids=[""])
def test_encryption_is_switched_on_by_the_keyboard(site: Living, visitor: Visitor) -> None:
    browser, texts = visitor.browser, visitor.texts
    visitor.open("sign-in")
    assert browser.tab() == f"a {texts('page.skip')}", "first of all, past the head of each page"

    def go_on(*steps: tuple[str, str]) -> None:
        for focused, keys in steps:
            while (reached := browser.tab()) != focused:
                assert reached, f"{focused} is not reached"
            browser.type(keys)

    go_on(("input name", BOB), ("input secret", USERS[BOB] + Keys.ENTER))
    visitor.told_in_time("state.plain", by_itself=True)
    go_on((f"a {texts('switch-on.title')}", Keys.ENTER))
    visitor.told_in_time("switch-on.lost-both", by_itself=True)
    go_on(
        ("input secret", USERS[BOB]),
        ("input understood", Keys.SPACE),
        (f"button {texts('switch-on.button')}", Keys.ENTER),
    )
    visitor.told_in_time("code.lead", by_itself=True)
    code = visitor.secret()
    site.know(code)
    go_on(("input group", code[-4:] + Keys.ENTER))
    visitor.told_in_time("state.encrypted", by_itself=True)
    assert f"button {texts('lock.button')}" in browser.tabs()
