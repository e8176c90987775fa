"""`python -m bench.largemessage DIRECTORY BYTES`: peak memory growth of both directions."""

import resource
import sys
from pathlib import Path

from bench.conversion import fill
from lmtp_atrest.conversion import Direction, Job, Run
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.maildir import Maildir


def main() -> None:
    """A small message first, so that what everything needs is there already."""
    directory, size = Path(sys.argv[1]), int(sys.argv[2])
    key = PrivateKey.generate(Curve.PRIME256V1)
    jobs = [
        Job(direction, key.public, lambda header: dcrypt.unwrap(header, key))
        for direction in (Direction.ENCRYPT, Direction.DECRYPT)
    ]
    small = fill(directory / "small", 4, 2_000_000)
    for job in jobs:
        _run(small, job)
    large = directory / "large"
    for name in ("tmp", "new", "cur"):
        (large / name).mkdir(parents=True)
    with (large / "cur" / f"1.M1P1.bench,S={size}:2,S").open("wb") as file:
        file.write(b"Subject: large\r\n\r\n")
        file.truncate(size)
    grown = [_run(large, job) for job in jobs]
    print(*grown)


def _run(maildir: Path, job: Job) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Maildir.open(maildir.parent, maildir, create=False) as box:
        counts = Run(box, job)()
    if counts.failed or not counts.done:
        raise RuntimeError(counts)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    main()
