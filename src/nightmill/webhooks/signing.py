"""Standard Webhooks: secrets, and the headers of a delivery, signed with each secret that is valid."""

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook

import nightmill

USER_AGENT: Final = f"nightmill/{nightmill.__version__}"
_SECRET_BYTES: Final = 32


def new_secret(random: Callable[[int], bytes]) -> str:
    """A signing secret in the form that receivers are given.

    Args:
        random: returns the given number of random bytes.
    """
    return "whsec_" + base64.b64encode(random(_SECRET_BYTES)).decode()


def signed_headers(
    payload: str, *, delivery_id: str, now: float, secrets: Sequence[str]
) -> Mapping[str, str]:
    """The headers for one attempt, its time included.

    Args:
        payload: the exact text that is sent.
        now: Unix seconds; receivers refuse a time that is more than five minutes off.
    """
    moment = datetime.fromtimestamp(int(now), UTC)
    signatures = [Webhook(secret).sign(delivery_id, moment, payload) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(signatures),
    }
