"""Runs the recorder as a service.

Its state (`collector` reads it, `recorder_status` holds it and names problems) goes to Prometheus, people and programs
over HTTP (`prometheus`, `health`), to the service manager (`systemd`) and to other processes (`status`). `reload` takes
over a changed list of tickers, `key_lock` keeps a second recorder from the same key, and `preflight` asks venue and
machine before a start.
"""
