"""PostgreSQL's wire protocol, version 3: bytes in, values out, no sockets."""
