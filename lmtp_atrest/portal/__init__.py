"""The portal: server-rendered pages on which users look after their own keys.

It must decide nothing about keys: the unlock service checks each secret again and keeps the rules.
It holds no password longer than the request that brought it.
"""
