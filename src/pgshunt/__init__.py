"""pgshunt moves services off one shared PostgreSQL, one at a time, without their noticing."""

__version__ = "0.1.0"
