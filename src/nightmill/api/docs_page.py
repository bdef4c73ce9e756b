"""`/docs`: OpenAI's routes and nightmill's own, on one page, drawn by Swagger UI; and the second document."""

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from nightmill.api.envelope import JsonResponse

_SWAGGER: Final = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5"
_PAGE: Final = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nightmill</title>
<link rel="stylesheet" href="{_SWAGGER}/swagger-ui.css">
</head>
<body>
<noscript>The documents are <a href="/openapi.json">/openapi.json</a> for OpenAI's routes and
<a href="/nightmill/openapi.json">/nightmill/openapi.json</a> for nightmill's own.</noscript>
<div id="openai"></div>
<div id="own"></div>
<script src="{_SWAGGER}/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "/openapi.json", dom_id: "#openai"}});
SwaggerUIBundle({{url: "/nightmill/openapi.json", dom_id: "#own"}});
</script>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(_PAGE)


@router.get("/nightmill/openapi.json")
async def own_document(request: Request) -> JsonResponse:
    return JsonResponse(request.app.state.own_document())
