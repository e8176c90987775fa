"""Mail that is already there: encrypted, decrypted, sealed to another key, and verified.

A run works on a mailbox in use and may end at any point: what a message is, its own first bytes
say, so a run that is repeated goes on where it stopped, and no record of a run can make it do
anything. Nothing here can reach a private key: message keys come from a function that unwraps.
"""

from lmtp_atrest.conversion.account import Place, convert
from lmtp_atrest.conversion.forms import Direction, Job
from lmtp_atrest.conversion.run import Counts, Failure, Progress, Run
from lmtp_atrest.conversion.state import RunState, States
from lmtp_atrest.conversion.verify import Fault, Kind, Report, verify

__all__ = [
    "Counts",
    "Direction",
    "Failure",
    "Fault",
    "Job",
    "Kind",
    "Place",
    "Progress",
    "Report",
    "Run",
    "RunState",
    "States",
    "convert",
    "verify",
]
