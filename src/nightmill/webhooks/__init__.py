"""Sends webhooks: `sender` makes one POST to an address that was checked, `signing` signs what is sent."""
