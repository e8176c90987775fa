import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeDelivery
from tests.lmtp.dialogs import connected

WIRE = {
    "lhlo": b"LHLO c\r\n",
    "mail": b"MAIL FROM:<s@x>\r\n",
    "rcpt": b"RCPT TO:<a@x>\r\n",
    "unknown": b"RCPT TO:<nobody@x>\r\n",
    "data": b"DATA\r\n",
    "rset": b"RSET\r\n",
    "noop": b"NOOP\r\n",
    "junk": b"JUNK\r\n",
    "bare": b"NO\rOP\r\n",
}
MESSAGE = b"x\r\n..\r\n.\r\n"


class Model:
    """What RFC 2033 says of the number and class of replies."""

    def __init__(self) -> None:
        self.greeted = self.has_sender = False
        self.recipients = 0

    def reset(self) -> None:
        self.has_sender, self.recipients = False, 0

    def expect(self, command: str) -> list[str]:
        match command:
            case "lhlo":
                self.greeted = True
                self.reset()
                return ["250"] * 6
            case "mail":
                if not self.greeted or self.has_sender:
                    return ["503"]
                self.has_sender = True
            case "rcpt" | "unknown":
                if not self.has_sender:
                    return ["503"]
                if command == "unknown":
                    return ["550"]
                self.recipients += 1
            case "data":
                if not self.recipients:
                    return ["503"]
                answers = ["354", *["250"] * self.recipients]
                self.reset()
                return answers
            case "rset":
                self.reset()
            case "junk" | "bare":
                return ["500"]
        return ["250"]


def play(commands: list[str], cut: int) -> None:
    model, wire, expected = Model(), b"", ["220"]
    for command in commands:
        answers = model.expect(command)
        expected += answers
        wire += WIRE[command] + (MESSAGE if answers[0] == "354" else b"")

    async def session() -> list[str]:
        delivery = FakeDelivery(refuse={"nobody@x": "unknown"})
        async with connected(delivery, errors=100) as (client, _):
            for block in (wire[:cut], wire[cut:]):
                await client.send(block)
                await asyncio.sleep(0)
            return [line[:3] for line in await client.lines(len(expected))]

    assert asyncio.run(session()) == expected


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(sorted(WIRE)), max_size=25), st.integers(0, 300))
def test_any_order_of_commands_gets_the_replies_of_the_model(
    commands: list[str], cut: int
) -> None:
    play(["lhlo", "mail", "rcpt", *commands], cut)
    play(commands, cut)
