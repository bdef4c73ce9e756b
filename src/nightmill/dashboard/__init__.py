"""The dashboard: web pages that show and do what the HTTP API can.

Every page gets its data from the routes of the API, called in this process for the person who is signed in
(`calls`), so a page can't show or do more than the same key could over HTTP. A screen is a function that
returns a `Screen`: the name of a template and a document of plain values. The document is also the JSON twin
of the page (`pages`), and the source of its live updates (`live`). `sessions` decides who is asking and
`guard` which requests are accepted; `app` puts the parts together.

There is no build step: the scripts and styles in `static/` are served as they are, those of others with
their licences in `static/vendor`. Addresses on a page are relative to its `<base>`, so that a proxy can serve
the dashboard below any path without a setting.
"""
