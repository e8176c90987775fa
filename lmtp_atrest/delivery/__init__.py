"""One message, n recipients, n replies: decided and stored without any socket."""
