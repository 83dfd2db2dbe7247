"""The supervisor: workers, admin HTTP API, metrics, guard and the command line."""
