"""Deliveries a second, side by side: lmtp-atrest and Dovecot's LMTP on the same disk.

`make bench` runs it; it needs root and the root that `make peers` builds. The servers run with
their default settings, all of them sync file and directory before they answer, and take turns
(A B C A B C), so that a machine that slows down slows them all. Nothing here fails by a figure.
"""
