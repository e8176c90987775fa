"""Bytes in, bytes out: the message format, key pairs, slots, vaults and signed records."""
