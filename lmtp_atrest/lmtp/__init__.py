"""LMTP (RFC 2033): the network side of delivery; framing, limits and one reply per recipient."""
