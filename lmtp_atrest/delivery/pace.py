"""How long the disk takes, which decides who waits for it.

To hand a message to a thread and back costs 0.3 ms of CPU time, as much as the wait for a fast
disk; so the event loop itself stores a small message. On a slow disk threads wait, side by side,
since one sync of the file system brings most of what waits to the disk, whoever asked for it.
"""

# For a commit, which has two syncs. Above it the workers would mostly wait, one copy each.
SLOW_SECONDS = 0.010
# Of how many copies the average is made: a stall of one second sends the next 20 to threads.
SPAN = 8
# The sync of a larger message takes as long as its bytes do, and tells nothing of the disk.
SMALL = 128 * 1024


class Pace:
    """A running average of the seconds that a small copy's commit took. For any thread."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def note(self, seconds: float, size: int) -> None:
        """Another copy was committed."""
        if size <= SMALL:
            self._seconds += (seconds - self._seconds) / SPAN

    @property
    def is_slow(self) -> bool:
        """Whether threads should wait for the disk."""
        return self._seconds > SLOW_SECONDS
