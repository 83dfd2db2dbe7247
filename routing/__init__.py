"""Decides where a statement goes: shape, placement, route. Never sees bytes or sockets."""
