"""Who is asking: an API key, or nobody in particular while no key exists.

Duty: from a request's headers to a project. Promise: keys are looked up by their SHA-256, so a
comparison's timing says nothing about a key, and a key is in no message and no log. Not its duty: making
keys (`keys`).
"""

from typing import Annotated, cast

from fastapi import Depends, Request

from nightmill.ids import ProjectId

DEFAULT_PROJECT = ProjectId("default")
PROJECT_IN_SCOPE = "nightmill.project"


async def project_of(request: Request) -> ProjectId:
    """The project that `middleware` found for this request, before anything else looked at it."""
    return cast("ProjectId", request.scope[PROJECT_IN_SCOPE])


Project = Annotated[ProjectId, Depends(project_of)]
"""Routes ask for `project: Project`."""
