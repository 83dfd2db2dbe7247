"""Compiles the hot path; everything else about the package stands in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup


def extension(name: str) -> Extension:
    """One compiled module; its source stands in the folder the link under src/pgshunt points to."""
    return Extension(
        f"pgshunt.{name}",
        [f"src/pgshunt/{name.replace('.', '/')}.pyx"],
        extra_compile_args=["-O2", "-fno-strict-aliasing"],
    )


setup(
    ext_modules=cythonize(
        [
            extension("protocol._wire"),
            extension("routing._nodes"),
            extension("routing._shapes"),
            extension("proxy._relay"),
        ],
        include_path=["src"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    ),
)
