"""The whole story on embedded PostgreSQL servers, observed step by step."""
