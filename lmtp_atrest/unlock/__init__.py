"""The service that opens vaults: protocol, open vaults, server and client."""
