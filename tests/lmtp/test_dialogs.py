import asyncio
from pathlib import Path

import pytest

from tests.lmtp import dialogs
from tests.lmtp.dialogs import Dialog, connected

FOLDER = Path(__file__).parent.parent / "dialogs" / "lmtp"
FILES = sorted(FOLDER.glob("*.dialog"))
# What follows a refused DATA depends on its reply, so such a dialog is played turn by turn only.
STEADY = [
    file
    for file in FILES
    if not dialogs.read(file).interactive and "begin" not in dialogs.read(file).delivery.fail
]


def test_there_are_dialogs() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_dialog(file: Path) -> None:
    dialog = dialogs.read(file)
    lines: list[str] = []
    async with connected(dialog.delivery, None, **dialog.limits) as (client, _):
        for sent, patterns in dialog.turns:
            await client.send(sent)
            lines += await client.lines(len(patterns))
    dialogs.check(lines, dialog)


async def play(dialog: Dialog, blocks: list[bytes]) -> None:
    async with connected(dialog.delivery, None, **dialog.limits) as (client, _):
        for block in blocks:
            await client.send(block)
            await asyncio.sleep(0)
        dialogs.check(await client.lines(len(dialog.expected)), dialog)


@pytest.mark.parametrize("file", STEADY, ids=lambda file: file.stem)
async def test_dialog_in_one_write_and_octet_by_octet(file: Path) -> None:
    dialog = dialogs.read(file)
    await play(dialog, [dialog.spoken])
    if len(dialog.spoken) < 2000:
        dialog = dialogs.read(file)
        await play(dialog, [bytes([octet]) for octet in dialog.spoken])


@pytest.mark.parametrize("name", ["one-reply-per-recipient", "odd-bytes-in-data"])
async def test_dialog_split_at_every_point(name: str) -> None:
    file = FOLDER / f"{name}.dialog"
    length = min(len(dialogs.read(file).spoken), 400)
    for cut in range(1, length):
        dialog = dialogs.read(file)
        await play(dialog, [dialog.spoken[:cut], dialog.spoken[cut:]])
