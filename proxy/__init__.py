"""The data plane: sessions, links, pools and the worker process that runs them."""
