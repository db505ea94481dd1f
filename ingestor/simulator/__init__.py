"""Simulated venue: it speaks the protocols on real sockets, misbehaves on command, and records what it sent."""
