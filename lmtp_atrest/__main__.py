"""`python -m lmtp_atrest` is the console script."""

from lmtp_atrest.cli import main

main()
