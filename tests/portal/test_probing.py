"""What somebody tries who is not a friend: every page, without a browser's manners."""

import asyncio
import time
from urllib.parse import quote

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.portal.app import PAGES
from lmtp_atrest.portal.imap import ImapLogin
from lmtp_atrest.portal.place import Place
from lmtp_atrest.portal.shell import Headers, Page
from tests.portal.browsing import Browser, browser
from tests.ports import free_port
from tests.unlock.conftest import ALICE, BOB
from tests.unlock.running import Running

SIGNED_IN = [page for page in PAGES if not page.open_to_strangers]
FORMS = [page for page in PAGES if page.act is not None]
WRONG = "Address and password do not match"


def named(page: Page) -> str:
    return page.path.strip("/").replace("{language}", "en")


def ids(page: Page) -> str:
    return named(page) or "overview"


EXPECTED_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "strict-transport-security": "max-age=31536000",
}


async def test_every_answer_has_the_headers(visitor: Browser) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    odd = ["no-such-page", "static/no-such-file", "../etc/passwd", "static/..%2fapp.py", "%00"]
    for path in [*map(named, PAGES), "static/portal.css", "static/colours.css", *odd]:
        for method in ("GET", "POST", "HEAD", "DELETE", "TRACE", "PROPFIND"):
            answer = await visitor.client.request(method, path)
            assert answer.status_code < 500, (method, path)
            for name, value in EXPECTED_HEADERS.items():
                assert answer.headers.get_list(name) == [value], (method, path, name)
            kept = "no-store" if not path.startswith("static/") else None
            if kept or "cache-control" in answer.headers:
                assert answer.headers.get("cache-control") == kept, (method, path)
            assert "server" not in answer.headers


async def test_pages_load_nothing_from_elsewhere_and_hold_no_script_or_style(
    visitor: Browser,
) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    for page in PAGES:
        if page.show is None or page.path == "/progress":
            continue
        html = (await visitor.get(named(page))).text
        assert "://" not in html.replace("http://www.w3.org/2000/svg", ""), page.path
        assert " style=" not in html and "<style" not in html and " onclick" not in html
        assert html.count("<script") == html.count('<script src="/keys/static/portal.js"') == 1
        assert html.count("<h1>") == 1 and '<html lang="en">' in html


@pytest.mark.parametrize("page", SIGNED_IN, ids=ids)
async def test_strangers_see_nothing(page: Page, visitor: Browser, unlock: Running) -> None:
    before = unlock.site.accounts.record(ALICE)
    for method in page.methods:
        answer = await visitor.client.request(method, named(page), data={"token": "0" * 64})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/keys/sign-in"
    assert unlock.site.accounts.record(ALICE) == before


@pytest.mark.parametrize("page", FORMS, ids=ids)
async def test_forged_forms_do_nothing(page: Page, place: Place, visitor: Browser) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    mine = visitor.token
    async with browser(place, "198.51.100.1") as other:
        await other.sign_in(ALICE, "correct horse")
        others = other.token
    fields = {"secret": "correct horse", "choice": "accept", "understood": "yes"}
    forged: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({"token": ""}, {}),
        ({"token": "0" * 64}, {}),
        ({"token": others}, {}),
        ({"token": mine}, {"origin": "https://evil.example"}),
        ({"token": mine}, {"origin": "null", "sec-fetch-site": "cross-site"}),
        ({"token": mine}, {"origin": "null", "sec-fetch-site": "same-site"}),
        ({"token": mine}, {"origin": "https://mail.example.org.evil.example"}),
    ]
    for values, headers in forged:
        answer = await visitor.client.post(named(page), data={**fields, **values}, headers=headers)
        assert answer.status_code == 403, (values, headers)
        assert "out of date" in answer.text


async def test_a_browser_s_own_form_is_none(visitor: Browser) -> None:
    """Pages that send no referrer have a browser say that a form's origin is `null`."""
    await visitor.sign_in(ALICE, "correct horse")
    headers = {"origin": "null", "sec-fetch-site": "same-origin"}
    await visitor.post("lock", {"token": visitor.token}, **headers)
    assert "Your mailbox is locked" in visitor.text


async def test_a_token_from_before_signing_in_is_worth_nothing_after(visitor: Browser) -> None:
    await visitor.get("sign-in")
    before = visitor.token
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.post("freeze", {"token": before})
    assert visitor.page.status_code == 403


async def test_a_session_id_that_was_foisted_on_somebody_is_not_taken_up(
    place: Place, visitor: Browser
) -> None:
    foisted = "A" * 43
    cookie = "__Secure-atrest-session"
    visitor.client.cookies.set(cookie, foisted, domain="mail.example.org", path="/keys")
    await visitor.sign_in(ALICE, "correct horse")
    assert "Your mail is encrypted" in visitor.text
    assert place.sessions.find(foisted) is None
    first = visitor.client.cookies.get(cookie, domain="mail.example.org", path="/keys")
    await visitor.submit("sign-out", "")
    async with browser(place) as thief:
        thief.client.cookies.set(cookie, str(first), domain="mail.example.org", path="/keys")
        await thief.get("")
        assert thief.at == "sign-in", "a session that was signed out opens again"


async def test_cookies_are_closed_to_scripts_and_to_other_sites(visitor: Browser) -> None:
    await visitor.get("sign-in")
    answer = await visitor.client.post(
        "sign-in", data={"token": visitor.token, "name": ALICE, "secret": "correct horse"}
    )
    (cookie,) = answer.headers.get_list("set-cookie")
    name, *attributes = cookie.split("; ")
    assert name.startswith("__Secure-atrest-session=")
    assert sorted(map(str.lower, attributes)) == [
        "httponly",
        "path=/keys",
        "samesite=strict",
        "secure",
    ]


async def test_a_link_in_the_webmail_leads_to_the_session_that_is_open(visitor: Browser) -> None:
    """A strict cookie is not sent along with a click on another site's page."""
    await visitor.sign_in(ALICE, "correct horse")
    kept = visitor.client.cookies
    visitor.client.cookies = httpx.Cookies()
    await visitor.get("activity", **{"sec-fetch-site": "cross-site"})
    assert 'http-equiv="refresh" content="0; url=/keys/activity"' in visitor.page.text
    visitor.client.cookies = kept
    await visitor.get("activity", **{"sec-fetch-site": "same-origin"})
    assert visitor.at == "activity"


async def test_sessions_end_by_idle_time_and_by_age(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    unlock.clock.seconds += 599
    await visitor.get("")
    assert visitor.at == ""
    for _ in range(60):
        unlock.clock.seconds += 10
        await visitor.get("progress")  # as the script does that nobody looks at
    assert visitor.at == "sign-in"
    await visitor.sign_in(ALICE, "correct horse")
    for _ in range(7):
        unlock.clock.seconds += 550
        await visitor.get("")
    assert visitor.at == "sign-in"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"name=a&secret=b&token=" + b"c" * 9000, "application/x-www-form-urlencoded", 413),
        (b"x" * 100_000, "application/x-www-form-urlencoded", 413),
        (b"name=%ff%fe", "application/x-www-form-urlencoded", 400),
        (b"name=\xff", "application/x-www-form-urlencoded", 400),
        (b"name=a&name=b", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"f%d=" % n for n in range(30)), "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 403),
        (b'{"name": "a"}', "application/json", 415),
        (b"--x--", "multipart/form-data; boundary=x", 415),
        (b"name=a", "text/plain", 415),
    ],
)
async def test_odd_forms_get_short_answers(
    body: bytes, kind: str, status: int, visitor: Browser
) -> None:
    answer = await visitor.client.post("sign-in", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert "<h1>That did not work</h1>" in answer.text


ODD_NAMES = [
    "",
    "nobody@example.org",
    "alice@example.org\u202e",
    "\u0000alice@example.org",
    "alice@example.org\r\nX: y",
    "\U0001f600" * 50,
    "a" * 5000,
    "..//..@example.org",
    "' OR 1=1 --",
    "{name}",
    "<script>alert(1)</script>",
    "\uff41\uff4c\uff49\uff43\uff45\uff20example.org",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
async def test_odd_names_are_nobody(name: str, visitor: Browser) -> None:
    await visitor.submit("sign-in", name=name, secret="correct horse")
    assert visitor.page.status_code in (403, 422)
    assert "<script>" not in visitor.page.text
    for page in ("forgot", "changed"):
        answer = await visitor.submit(
            page, name=name, code="ABCD", old="x", new="y", repeat="y", by="password"
        )
        assert answer.status_code in (403, 422), page


NEW = {"new": "wobbly-lantern-orchid-forty", "repeat": "wobbly-lantern-orchid-forty"}


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("sign-in", {"secret": "wrong"}),
        ("changed", {"old": "wrong", "by": "password", **NEW}),
        ("forgot", {"code": recovery_code.written(recovery_code.generate()), **NEW}),
    ],
    ids=["sign-in", "changed", "forgot"],
)
async def test_unknown_wrong_and_not_encrypted_are_told_alike_and_as_late(
    page: str, fields: dict[str, str], place: Place
) -> None:
    place._refusal_seconds = 1.5

    async def refused(who: str) -> tuple[str, float]:
        async with browser(place, f"198.51.100.{len(who)}") as one:
            await one.get(page)
            began = time.monotonic()
            await one.post(page, {"token": one.token, "name": who, **fields})
            seconds = time.monotonic() - began
            assert one.page.status_code == 403
            return one.page.text.replace(who, "…").replace(one.token, "…"), seconds

    seen = await asyncio.gather(*map(refused, (ALICE, BOB, "nobody@example.org")))
    assert len({html for html, _ in seen}) == 1
    times = [seconds for _, seconds in seen]
    assert min(times) > 1.4 and max(times) - min(times) < 0.5, times


@pytest.mark.parametrize("page", ["forgot", "changed"])
async def test_a_typing_error_in_a_code_says_nothing_about_the_account(
    page: str, place: Place
) -> None:
    fields = {"old": "ABCD", "code": "ABCD", "by": "code"}
    for who in (ALICE, BOB, "nobody@example.org"):
        async with browser(place) as one:
            await one.submit(page, name=who, **fields, **NEW)
            assert "There is a typing error in the code" in one.text, who


async def test_guessing_is_slowed_down_for_names_that_exist_and_those_that_do_not(
    place: Place,
) -> None:
    for who in (ALICE, BOB, "nobody@example.org"):
        async with browser(place, "203.0.113.77") as one:
            for number in range(3):
                await one.sign_in(who, f"guess {number}")
                assert one.page.status_code == 403
            await one.sign_in(who, "guess 4")
            assert one.page.status_code == 429, who
            assert int(one.page.headers["retry-after"]) >= 1
            assert "Too many tries" in one.text


async def test_an_unlock_service_that_is_down_is_told_truly(
    visitor: Browser, unlock: Running
) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    for server in unlock.servers:
        await server.stop()
    await visitor.get("")
    assert visitor.page.status_code == 503
    assert "Your mail is safe" in visitor.text


async def test_a_bug_is_told_without_what_the_form_held(
    place: Place,
    visitor: Browser,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_arguments: object) -> None:
        raise RuntimeError("my secret text")

    monkeypatch.setattr(place, "verify", broken)
    await visitor.sign_in(ALICE, "a canary password")
    assert visitor.page.status_code == 500
    seen = visitor.page.text + "".join(capsys.readouterr())
    assert "canary" not in seen and "secret text" not in seen and "RuntimeError" in seen


async def test_many_at_once_are_answered(place: Place) -> None:
    async def one(number: int) -> int:
        async with browser(place, f"192.0.2.{number}") as visitor:
            await visitor.sign_in(ALICE, "correct horse")
            return visitor.page.status_code

    assert set(await asyncio.gather(*map(one, range(20)))) == {200}


async def test_more_than_can_be_answered_are_told_so_with_all_headers() -> None:
    arrived, open_up = asyncio.Semaphore(0), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.release()
        await open_up.wait()
        await PlainTextResponse("at last")(scope, receive, send)

    app = Headers(slow, secure=True, static="/static/", limit=2)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://portal.test") as client:
        waiting = [asyncio.create_task(client.get("/")) for _ in range(2)]
        for _ in waiting:
            await arrived.acquire()
        refused = await client.get("/")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert EXPECTED_HEADERS.items() <= dict(refused.headers).items()
        open_up.set()
        assert [(await one).text for one in waiting] == ["at last"] * 2
        assert (await client.get("/")).status_code == 200


async def test_an_imap_server_that_is_gone_lets_nobody_in(place: Place, visitor: Browser) -> None:
    place.imap = ImapLogin(f"imap://127.0.0.1:{free_port()}")
    await visitor.sign_in(BOB, "bob's own password")
    assert visitor.page.status_code == 503


@pytest.mark.parametrize("language", ["de", "fr", "es"])
async def test_each_language_is_kept_once_it_is_chosen(language: str, visitor: Browser) -> None:
    await visitor.get(f"language/{language}?back=forgot")
    assert visitor.at == "forgot"
    assert f'<html lang="{language}">' in visitor.page.text
    await visitor.get(f"language/en?back={quote('//evil.example')}")
    assert visitor.at == "sign-in"
