"""The two stores, in domain words: signed records, and the vaults that only unlock reads."""
