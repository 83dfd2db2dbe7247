"""One YAML file becomes one validated model, or a list of every problem in it."""
