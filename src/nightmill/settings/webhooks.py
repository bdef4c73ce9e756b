"""The settings of webhooks: where they may be sent to, and how."""

from typing import Annotated

from pydantic import AfterValidator, Field

from nightmill.core.usage import DAY_S
from nightmill.core.webhook_url import networks_of
from nightmill.settings.upstreams import Section


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError for a text that is no network; pydantic names the setting."""
    for text in texts:
        try:
            networks_of([text])
        except ValueError as error:
            raise ValueError(f"{error}; write a network such as 10.20.0.0/16, or an address") from None
    return texts


class WebhookSettings(Section):
    """Where webhooks may be sent to, how many at once, and how long their log is kept (docs/webhooks.md)."""

    allow_private: Annotated[tuple[str, ...], AfterValidator(_checked)] = ()
    """Networks such as `10.20.0.0/16` or `127.0.0.1/32` to which webhooks may go. Public addresses are always
    allowed; any other address is refused unless it is in one of these."""
    allow_http: bool = False
    """Accept URLs that begin with `http://`. Others on the way can then read and repeat deliveries."""
    timeout_s: Annotated[float, Field(gt=0, le=120)] = 15.0
    """Seconds in which a receiver must answer with a status of 200 to 299. The time to look up its host and
    to connect counts. A receiver that needs longer should answer first, and work then."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    """Deliveries in flight at once, per process with the role `courier`."""
    per_endpoint: Annotated[int, Field(ge=1)] = 4
    """Deliveries in flight at once to one endpoint, so that a slow one does not delay others."""
    endpoints_per_project: Annotated[int, Field(ge=1)] = 20
    """Endpoints that one project may have."""
    kept_s: Annotated[int, Field(ge=3_600)] = 30 * DAY_S
    """Age in seconds at which a delivery that has ended leaves the log. It can be sent again until then."""
