"""A venue of our own: it speaks the protocol on real sockets, misbehaves on command, keeps the truth."""
