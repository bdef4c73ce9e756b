"""Traces by OpenTelemetry, an extra: `nightmill[otel]`. No other package imports its library.

Off unless `traces.enabled` is set; then subscribers of events and a wrapper of upstream clients make spans.
"""
