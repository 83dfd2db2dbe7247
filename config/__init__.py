"""One YAML file becomes one validated `Config`, or a list of every problem in it.

`load` reads a file and raises `ConfigError` with all its problems, `load_admin` for what it says of the admin
API without others' secrets; `examine` also tells warnings and notes, and raises nothing. Reading order:
`source` (text → values with places) → `values` and `model` (values → sections) → `resolve` (secrets and
paths) → `check` (rules between values); `explain` and `problem` word what is wrong. `pgshunt.yaml` beside
this file is the worked example.
"""

from pgshunt.config.load import Report, examine, load, load_admin
from pgshunt.config.model import Admin, Config
from pgshunt.config.names import qualified
from pgshunt.config.problem import ConfigError, Place, Problem, Severity
from pgshunt.config.secret import Secret

__all__ = [
    "Admin",
    "Config",
    "ConfigError",
    "Place",
    "Problem",
    "Report",
    "Secret",
    "Severity",
    "examine",
    "load",
    "load_admin",
    "qualified",
]
