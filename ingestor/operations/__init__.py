"""What an operator has of a recorder that runs.

How it is (`watch` looks, `vitals` says), told to Prometheus, people and programs over HTTP (`exposition`, `health`), to
the service manager (`systemd`) and from another process (`status`); what may be asked of it (`signals`,
`live_settings`); what keeps a second one from its key (`key_lock`); and what can be asked of venue and machine before a
start (`online`).
"""
