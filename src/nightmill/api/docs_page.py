"""`/docs`: OpenAI's routes and nightmill's own, on one page, drawn by Swagger UI; and the second document.

The page works without a network: Swagger UI's files are part of the package, in `swagger_ui/` with their
licence. They are the unchanged files of `swagger-ui-dist`; to update them, copy the same five files of a
newer release and change `VERSION`. All addresses on the page are relative, so that it works behind a path
prefix.
"""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse

from nightmill.api.envelope import JsonResponse
from nightmill.api.middleware import PATH_AS_SENT

VERSION: Final = "5.35.0"
"""The release of `swagger-ui-dist` that the files are from."""
_FOLDER: Final = Path(__file__).with_name("swagger_ui")
# The version in the address changes with the files, so a browser may keep them for as long as it likes.
_FOREVER: Final = {"cache-control": "public, max-age=31536000, immutable"}
# The documents name the server by its path, which "Try it out" would use without the path prefix of a proxy.
# Without `validatorUrl: null`, Swagger UI may send the address of the document to a validator elsewhere.
_PAGE: Final = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nightmill</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css?{VERSION}">
</head>
<body>
<noscript>The documents are <a href="openapi.json">/openapi.json</a> for OpenAI's routes and
<a href="nightmill/openapi.json">/nightmill/openapi.json</a> for nightmill's own.</noscript>
<div id="openai"></div>
<div id="own"></div>
<script src="docs/swagger-ui-bundle.js?{VERSION}"></script>
<script>
async function show(place, base, dom_id) {{
  const spec = await (await fetch(place)).json();
  spec.servers = [{{url: new URL(base, document.baseURI).href.replace(/[/]$/, "")}}];
  SwaggerUIBundle({{spec, dom_id, validatorUrl: null}});
}}
show("openapi.json", "v1", "#openai");
show("nightmill/openapi.json", ".", "#own");
</script>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    # From `/docs/` the relative addresses begin one level deeper.
    is_folder = request.scope[PATH_AS_SENT].endswith("/")
    return HTMLResponse(_PAGE.replace("<head>", '<head>\n<base href="../">') if is_folder else _PAGE)


@router.get("/docs/swagger-ui.css")
async def style() -> FileResponse:
    return FileResponse(_FOLDER / "swagger-ui.css", headers=_FOREVER)


@router.get("/docs/swagger-ui-bundle.js")
async def script() -> FileResponse:
    return FileResponse(_FOLDER / "swagger-ui-bundle.js", headers=_FOREVER)


@router.get("/nightmill/openapi.json")
async def own_document(request: Request) -> JsonResponse:
    return JsonResponse(request.app.state.own_document())
